"""Model references to directories: the embedded model, local paths, and the Hugging Face hub with its cache.

`huggingface_hub` provides cache, names, tokens and addresses, and honours its environment (HF_HOME, HF_ENDPOINT,
HF_TOKEN, HF_HUB_OFFLINE). What is complete in the cache is used without asking the network; `pull` looks for news.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openautoglm.checkpoint.hub_cache import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    CachedModel,
    cached_snapshot,
    demo_directory,
    list_cached,
    repository_directory,
    write_reference,
)
from openautoglm.checkpoint.index import INDEX_FILE, Checkpoint, parse_index
from openautoglm.checkpoint.json_files import read_json
from openautoglm.checkpoint.reference import ModelReference, parse_reference
from openautoglm.checkpoint.tensors import TensorInfo
from openautoglm.errors import HubError
from openautoglm.progress import Progress, ProgressCallback
from openautoglm.units import format_bytes

# What speaks to a hub is imported where that is done: most starts find their model here.
if TYPE_CHECKING:
    from openautoglm.checkpoint.remote import RemoteFile, RemoteModel

__all__ = [
    "CachedModel",
    "ModelReference",
    "PulledModel",
    "list_cached",
    "parse_reference",
    "pull",
    "resolve",
    "resolve_config",
]

DOWNLOAD_STAGE = "download"
# Beside the weights; never code, never pickles.
TEXT_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    INDEX_FILE,
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PulledModel:
    """A model that stands complete and verified in the cache, at `path`."""

    name: str
    revision: str
    commit: str
    path: Path
    num_files: int
    total_bytes: int


def resolve(reference: str, *, progress: ProgressCallback | None = None) -> Path:
    """Return the checkpoint directory of a reference, downloading it if it is not complete in the cache.

    `progress` hears of the stage "download". Raises `HubError`, `CheckpointError`.
    """
    parsed = parse_reference(reference)
    if parsed.demo:
        return demo_directory()
    if parsed.path is not None:
        if not parsed.path.is_dir():
            raise HubError(f"{parsed.path} is not a directory: give the directory that holds {CONFIG_FILE}")
        return parsed.path
    return _usable_snapshot(parsed) or pull(reference, progress=progress).path


def _usable_snapshot(reference: ModelReference) -> Path | None:
    """Return the cached snapshot, unless another tool fetched it without its tokenizer and the hub can be asked."""
    from huggingface_hub import constants

    snapshot = cached_snapshot(reference)
    if snapshot is None or (snapshot / TOKENIZER_FILE).is_file() or constants.HF_HUB_OFFLINE:
        return snapshot
    return None


def pull(reference: str, *, revision: str | None = None, progress: ProgressCallback | None = None) -> PulledModel:
    """Download a model into the Hugging Face cache: what is missing, resumed where it broke off, verified.

    Only configuration, tokenizer, chat template and safetensors files are fetched. Sizes are checked, and the hash the
    hub states for each file that was fetched. Raises `HubError`; `CheckpointFormatError` for a bad index.
    """
    from openautoglm.checkpoint.hub_errors import hub_errors
    from openautoglm.checkpoint.remote import fetch_listing

    parsed = parse_reference(reference)
    if parsed.repository is None:
        found = parsed.demo or (parsed.path is not None and parsed.path.exists())
        where = "is already on this machine" if found else "is a path, and nothing is there"
        raise HubError(f"{reference} {where}: pull takes the name of a model on the hub, org/name")
    if revision is not None:
        if parsed.revision is not None:
            raise HubError(f"{reference} names a revision, and so does --revision {revision}: give one of them")
        parsed = parse_reference(f"{parsed.repository}@{revision}")
    with hub_errors(str(parsed)):
        model = fetch_listing(parsed)
        return _fetch_model(model, progress)


def _fetch_model(model: RemoteModel, progress: ProgressCallback | None) -> PulledModel:
    from openautoglm.checkpoint.download import fetch_file

    if CONFIG_FILE not in model.files:
        raise HubError(f"{model.repository} has no {CONFIG_FILE} at its root: it is no transformers model")
    texts = [model.files[name] for name in TEXT_FILES if name in model.files]
    fetched = [fetch_file(model, file, _ignore) for file in texts]
    snapshot = fetched[0].parent
    weights = [model.files[name] for name in model.shard_names(_weight_map(model, snapshot))]
    _check_disk_space(model, weights)
    total_bytes, done_bytes = sum(file.size_bytes for file in weights), 0

    def on_bytes(num_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += num_bytes
        if progress is not None:
            progress(Progress(stage=DOWNLOAD_STAGE, done_bytes=done_bytes, total_bytes=total_bytes))

    for file in weights:
        fetch_file(model, file, on_bytes)
    write_reference(model.repository, model.revision, model.commit)
    return PulledModel(
        name=model.repository,
        revision=model.revision,
        commit=model.commit,
        path=snapshot,
        num_files=len(texts) + len(weights),
        total_bytes=total_bytes + sum(file.size_bytes for file in texts),
    )


def _ignore(num_bytes: int) -> None:
    """Text files are too small for a progress bar."""


def _weight_map(model: RemoteModel, snapshot: Path) -> dict[str, str] | None:
    if INDEX_FILE not in model.files:
        return None
    return parse_index((snapshot / INDEX_FILE).read_bytes(), source=f"{model.repository}/{INDEX_FILE}")


def _check_disk_space(model: RemoteModel, weights: list[RemoteFile]) -> None:
    blobs = repository_directory(model.repository) / "blobs"
    needed_bytes = sum(file.size_bytes - _bytes_there(blobs, file) for file in weights)
    free_bytes = shutil.disk_usage(blobs).free
    if needed_bytes > free_bytes:
        raise HubError(
            f"{model.repository} needs {format_bytes(needed_bytes)} more in {blobs.parent.parent}, where "
            f"{format_bytes(free_bytes)} are free; free some space, or set HF_HOME to a bigger disk"
        )


def _bytes_there(blobs: Path, file: RemoteFile) -> int:
    if file.sha256 is None:
        return 0
    paths = (blobs / file.sha256, blobs / f"{file.sha256}.incomplete")
    return max((path.stat().st_size for path in paths if path.is_file()), default=0)


def resolve_config(reference: str) -> tuple[dict[str, object], Mapping[str, TensorInfo] | None]:
    """Return a model's config.json and its tensors' headers, never its weights; None where there are none.

    Takes a path of a config file too. From the hub, config, index and headers alone are fetched. Raises `HubError`,
    `CheckpointFormatError`, and what `Checkpoint.open` raises.
    """
    parsed = parse_reference(reference)
    if parsed.repository is None:
        path = demo_directory() if parsed.path is None else parsed.path
        return _read_local(path) if path.is_dir() else (read_json(path), None)
    snapshot = cached_snapshot(parsed)
    if snapshot is not None:
        return _read_local(snapshot)
    return _fetch_config(parsed)


def _fetch_config(parsed: ModelReference) -> tuple[dict[str, object], Mapping[str, TensorInfo]]:
    from openautoglm.checkpoint.download import fetch_file
    from openautoglm.checkpoint.hub_errors import hub_errors
    from openautoglm.checkpoint.remote import fetch_headers, fetch_listing

    with hub_errors(str(parsed)):
        model = fetch_listing(parsed)
        if CONFIG_FILE not in model.files:
            raise HubError(f"{model.repository} has no {CONFIG_FILE} at its root: it is no transformers model")
        config = fetch_file(model, model.files[CONFIG_FILE], _ignore)
        if INDEX_FILE in model.files:
            fetch_file(model, model.files[INDEX_FILE], _ignore)
        names = model.shard_names(_weight_map(model, config.parent))
        headers = fetch_headers(model, names)
    return read_json(config), {name: tensor for shard in headers for name, tensor in shard.items()}


def _read_local(directory: Path) -> tuple[dict[str, object], Mapping[str, TensorInfo] | None]:
    config = read_json(directory / CONFIG_FILE)
    if not any(directory.glob("*.safetensors")):
        return config, None
    with Checkpoint.open(directory) as checkpoint:
        return config, checkpoint.tensors
