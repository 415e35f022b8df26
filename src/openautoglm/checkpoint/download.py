"""Downloading one file into the Hugging Face cache so that an interrupted download resumes, and checking its hash.

`huggingface_hub` starts an interrupted file again from its first byte (since version 1.18 or so its partial files have
names of their own per process); weights are too large for that. So large files are fetched here, with range requests,
into blobs/<sha256>.incomplete of the hub's own cache, checked, and renamed to blobs/<sha256>, where the hub's client
finds them. Two processes that fetch the same file wait for each other (flock); where locks do not work they write the
same bytes to the same places.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from openautoglm.checkpoint.hub_cache import repository_directory
from openautoglm.checkpoint.hub_errors import transport_error_type
from openautoglm.checkpoint.hub_http import PIECE_BYTES, stream_from
from openautoglm.checkpoint.remote import RemoteFile, RemoteModel, file_url
from openautoglm.errors import HubError
from openautoglm.log import get_logger

_MAX_FRUITLESS_TRIES = 5
_RETRY_SECONDS = 1.0

_LOGGER = get_logger(__name__)


def fetch_file(model: RemoteModel, file: RemoteFile, on_bytes: Callable[[int], None]) -> Path:
    """Make a file of a model stand in the cache's snapshot, verified; return its path there.

    `on_bytes` is told of bytes as they are done, those of an earlier try and of a cached copy included; their sum is
    the file's size. Call within `hub_errors`. Raises `HubError` for bytes that do not match what the hub states.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class NoBar(tqdm):
        """The hub's own progress bar, never drawn."""

        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

    snapshot_path = repository_directory(model.repository) / "snapshots" / model.commit / file.name
    if _is_cached(snapshot_path, file):
        on_bytes(file.size_bytes)
        return snapshot_path
    if file.sha256 is not None:
        _fetch_blob(model, file, on_bytes)
    path = Path(hf_hub_download(model.repository, file.name, revision=model.commit, tqdm_class=NoBar))
    if file.sha256 is None:
        _check_small_file(path, file)
        on_bytes(file.size_bytes)
    return path


def _is_cached(path: Path, file: RemoteFile) -> bool:
    """Whether a cached copy is there with the stated size; a copy of another size is removed."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    if size == file.size_bytes:
        return True
    _LOGGER.warning("%s has %d bytes, the hub states %d: it is fetched again", path, size, file.size_bytes)
    _remove_cached(path)
    return False


def _remove_cached(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _check_small_file(path: Path, file: RemoteFile) -> None:
    """Check a file that git itself stores against its blob id, git's SHA-1 of "blob <size>NUL<content>"."""
    content = path.read_bytes()
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    if len(content) != file.size_bytes or (file.blob_id is not None and digest != file.blob_id):
        _remove_cached(path)
        raise _corrupt(file, f"{len(content)} bytes with git hash {digest}", f"{file.size_bytes} with {file.blob_id}")


def _corrupt(file: RemoteFile, found: str, expected: str) -> HubError:
    return HubError(
        f"{file.name} arrived damaged ({found}; the hub states {expected}); it was removed: pull the model again"
    )


def _fetch_blob(model: RemoteModel, file: RemoteFile, on_bytes: Callable[[int], None]) -> None:
    """Fetch blobs/<sha256> of the cache, resuming what an earlier try left."""
    assert file.sha256 is not None
    blob = repository_directory(model.repository) / "blobs" / file.sha256
    blob.parent.mkdir(parents=True, exist_ok=True)
    path = blob.with_name(f"{file.sha256}.incomplete")
    with _open_alone(path) as part:
        if blob.is_file() and blob.stat().st_size == file.size_bytes:
            path.unlink()
            on_bytes(file.size_bytes)
            return
        digest = hashlib.sha256()

        def note(data: bytes) -> None:
            digest.update(data)
            on_bytes(len(data))

        _read_earlier_part(part, file, note)
        _receive(file_url(model, file.name), part, file, note)
        if digest.hexdigest() != file.sha256:
            path.unlink()
            raise _corrupt(file, f"sha256 {digest.hexdigest()}", file.sha256)
        part.flush()
        os.fsync(part.fileno())
        path.replace(blob)


def _open_alone(path: Path) -> BinaryIO:
    """Open a partial file under a lock: wait for another process, and look again if that one finished or removed it."""
    while True:
        part = open(path, "r+b", opener=_create)  # noqa: SIM115 - handed to the caller
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _LOGGER.warning("another process downloads %s: waiting for it", path.name)
            fcntl.flock(part, fcntl.LOCK_EX)
        if path.exists() and os.path.samestat(os.fstat(part.fileno()), path.stat()):
            return part
        part.close()


def _create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT, 0o666)


def _read_earlier_part(part: BinaryIO, file: RemoteFile, note: Callable[[bytes], None]) -> None:
    """Hash what an earlier try left and stand at its end; more than the whole file is no part of it."""
    if os.fstat(part.fileno()).st_size > file.size_bytes:
        part.truncate(0)
    while data := part.read(PIECE_BYTES):
        note(data)


def _receive(url: str, part: BinaryIO, file: RemoteFile, note: Callable[[bytes], None]) -> None:
    """Append the rest of a file; after a broken connection go on where it broke, a few times without progress."""
    from huggingface_hub.errors import HfHubHTTPError

    num_fruitless = 0
    while (position := part.tell()) < file.size_bytes:
        broken: Exception = HubError(f"{file.name}: the hub ends the file early, at byte {position}; try again")
        try:
            for data in stream_from(url, position, file.size_bytes):
                part.write(data)
                note(data)
        except transport_error_type() as error:
            if isinstance(error, HfHubHTTPError):
                raise
            broken = error
        if part.tell() == file.size_bytes:
            return
        num_fruitless = 0 if part.tell() > position else num_fruitless + 1
        if num_fruitless > _MAX_FRUITLESS_TRIES:
            raise broken
        _LOGGER.warning("%s: the connection broke at byte %d (%s); going on there", file.name, part.tell(), broken)
        time.sleep(_RETRY_SECONDS * (1 + num_fruitless))
