"""What a hub says about a model: its commit and files; and reading parts of a file, for headers, without the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openautoglm.checkpoint.files import quoted
from openautoglm.checkpoint.hub_cache import COMMIT
from openautoglm.checkpoint.hub_http import stream_from
from openautoglm.checkpoint.index import INDEX_FILE, SINGLE_FILE
from openautoglm.checkpoint.reference import DEFAULT_REVISION, ModelReference
from openautoglm.checkpoint.safetensors import LENGTH_BYTES, check_header_length, parse_header
from openautoglm.checkpoint.tensors import TensorInfo
from openautoglm.errors import HubError
from openautoglm.units import KIB

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_FILES = 100_000
# Most headers are smaller, so that one request is enough.
_FIRST_READ_BYTES = 128 * KIB


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file at the root of a model's repository; `sha256` is stated for large files, `blob_id` (git) for all."""

    name: str
    size_bytes: int
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """A model at one commit. Files in folders are left out: a checkpoint is flat."""

    repository: str
    revision: str
    commit: str
    files: Mapping[str, RemoteFile]

    def shard_names(self, weight_map: Mapping[str, str] | None) -> tuple[str, ...]:
        """Return the weight files: those of the index, or the single one; raise `HubError` if one is not listed."""
        names = (SINGLE_FILE,) if weight_map is None else tuple(sorted(set(weight_map.values())))
        for name in names:
            if name not in self.files:
                raise HubError(f"{self.repository}: {self._what_is_wrong(name)}")
        return names

    def _what_is_wrong(self, name: str) -> str:
        if INDEX_FILE in self.files:
            return f"{INDEX_FILE} names {quoted(name)}, which the hub does not list; report it on the model's page"
        if any(file.endswith((".bin", ".pth", ".pt")) for file in self.files):
            return (
                "the weights are only there as pickles, which can run code and are never loaded; "
                "look for a version of this model in safetensors"
            )
        return "no safetensors weights in this repository; look for the unquantised version of this model"


def fetch_listing(reference: ModelReference) -> RemoteModel:
    """Ask the hub for a model's commit and files; call it within `hub_errors`. Raises `HubError` on a bad answer."""
    from huggingface_hub import HfApi, constants

    assert reference.repository is not None
    revision = reference.revision or DEFAULT_REVISION
    try:
        info = HfApi().model_info(
            reference.repository, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, OSError):
            raise
        raise _strange_answer(reference, type(error).__name__) from error
    siblings = info.siblings or []
    if info.sha is None or not COMMIT.fullmatch(info.sha) or len(siblings) > _MAX_FILES:
        raise _strange_answer(reference, f"commit {quoted(info.sha)}, {len(siblings)} files")
    files = [_remote_file(sibling, reference) for sibling in siblings if _PLAIN_NAME.fullmatch(sibling.rfilename)]
    return RemoteModel(
        repository=reference.repository,
        revision=revision,
        commit=info.sha,
        files={file.name: file for file in files},
    )


def _strange_answer(reference: ModelReference, what: str) -> HubError:
    return HubError(f"{reference}: the hub's answer cannot be understood ({what}); check HF_ENDPOINT, or try later")


def _remote_file(sibling: RepoSibling, reference: ModelReference) -> RemoteFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    size = sibling.lfs.size if sibling.lfs is not None else sibling.size
    if type(size) is not int or size < 0 or (sha256 is not None and not _SHA256.fullmatch(sha256)):
        raise _strange_answer(reference, f"size or hash of {quoted(sibling.rfilename)}")
    return RemoteFile(name=sibling.rfilename, size_bytes=size, sha256=sha256, blob_id=sibling.blob_id)


def file_url(model: RemoteModel, name: str) -> str:
    """Return the address of a file at the model's commit."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(model.repository, name, revision=model.commit)


def fetch_headers(model: RemoteModel, names: tuple[str, ...]) -> list[dict[str, TensorInfo]]:
    """Return the checked tensors of weight files, by requests for their headers alone; call within `hub_errors`.

    `TensorInfo.file` is the bare name of the remote file. Raises `CheckpointFormatError` for a bad header.
    """
    return [_fetch_header(model, model.files[name]) for name in names]


def _fetch_header(model: RemoteModel, file: RemoteFile) -> dict[str, TensorInfo]:
    url, source = file_url(model, file.name), f"{model.repository}/{file.name}"
    first = _fetch_range(url, 0, min(file.size_bytes, _FIRST_READ_BYTES))
    end = LENGTH_BYTES + check_header_length(first[:LENGTH_BYTES], file.size_bytes, source=source)
    header = first[LENGTH_BYTES:end]
    if len(first) < end:
        header += _fetch_range(url, len(first), end)
    tensors, _ = parse_header(header, file.size_bytes, file=Path(file.name))
    return tensors


def _fetch_range(url: str, begin: int, end: int) -> bytes:
    received = bytearray()
    if begin < end:
        with closing(stream_from(url, begin, end)) as pieces:
            for piece in pieces:
                received += piece
    if len(received) != end - begin:
        raise HubError(f"{url} ended early: {len(received)} bytes, {end - begin} expected; try again")
    return bytes(received)
