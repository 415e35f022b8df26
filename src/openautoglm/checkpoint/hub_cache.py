"""What the Hugging Face cache holds: finding a complete snapshot without the network, and listing models.

Layout (https://huggingface.co/docs/huggingface_hub/guides/manage-cache): models--org--name/ with refs/<revision>
holding a commit, snapshots/<commit>/<file> linking to blobs/<hash>.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from openautoglm.checkpoint.index import SINGLE_FILE, find_weights
from openautoglm.checkpoint.reference import DEFAULT_REVISION, DEMO_NAME, ModelReference
from openautoglm.errors import CheckpointError, HubError
from openautoglm.log import get_logger

CONFIG_FILE = "config.json"
TOKENIZER_FILE = "tokenizer.json"
COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)

_LOGGER = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel:
    """A model on this machine. `commit` and `revisions` (branches and tags) are empty for the embedded demo model.

    `complete` says that config and weights are all there; `size_bytes` counts every file of the snapshot.
    """

    name: str
    path: Path
    size_bytes: int
    commit: str
    revisions: tuple[str, ...]
    complete: bool


def repository_directory(repository: str) -> Path:
    """Return the cache's directory of a repository, whether it exists or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def cached_snapshot(reference: ModelReference) -> Path | None:
    """Return the complete snapshot of a hub reference, or None if it is not, or not all, in the cache."""
    assert reference.repository is not None
    directory = repository_directory(reference.repository)
    commit = reference.revision or DEFAULT_REVISION
    if not COMMIT.fullmatch(commit):
        try:
            commit = (directory / "refs" / commit).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
    snapshot = directory / "snapshots" / commit
    if not COMMIT.fullmatch(commit) or missing_files(snapshot):
        return None
    return snapshot


def missing_files(snapshot: Path) -> tuple[str, ...]:
    """Return the files that a snapshot lacks for being loaded: config.json and the weights that the index names."""
    missing = [] if (snapshot / CONFIG_FILE).is_file() else [CONFIG_FILE]
    try:
        weight_map = find_weights(snapshot)
    except CheckpointError:
        return (*missing, SINGLE_FILE)
    names = [SINGLE_FILE] if weight_map is None else sorted(set(weight_map.values()))
    return (*missing, *(name for name in names if not (snapshot / name).is_file()))


def write_reference(repository: str, revision: str, commit: str) -> None:
    """Record that a branch or tag stands at a commit; written last, so that it names a complete snapshot."""
    if revision == commit:
        return
    path = repository_directory(repository) / "refs" / revision
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        os.write(descriptor, commit.encode("ascii"))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def demo_directory() -> Path:
    """Return the directory of the embedded model; raise `HubError` if this installation came without it."""
    from openautoglm.demo import checkpoint_directory

    directory = checkpoint_directory()
    if not (directory / CONFIG_FILE).is_file():
        raise HubError(f"the embedded model is not in {directory}: install the package again, with its data files")
    return directory


def list_cached() -> list[CachedModel]:
    """List the embedded model and every model of the Hugging Face cache, by name; nothing is downloaded.

    Repositories whose cache is damaged are logged as warnings and left out.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    models = [_describe(DEMO_NAME, demo_directory(), "", ())]
    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return models
    for warning in cache.warnings:
        _LOGGER.warning("left out of the list: %s", warning)
    cached = [
        _describe(repository.repo_id, revision.snapshot_path, revision.commit_hash, tuple(sorted(revision.refs)))
        for repository in cache.repos
        if repository.repo_type == "model"
        for revision in repository.revisions
    ]
    return models + sorted(cached, key=lambda model: (model.name.lower(), model.revisions, model.commit))


def _describe(name: str, path: Path, commit: str, revisions: tuple[str, ...]) -> CachedModel:
    files = (file for file in path.rglob("*") if file.is_file() and file.suffix not in {".py", ".pyc"})
    return CachedModel(
        name=name,
        path=path,
        size_bytes=sum(file.stat().st_size for file in files),
        commit=commit,
        revisions=revisions,
        complete=not missing_files(path),
    )
