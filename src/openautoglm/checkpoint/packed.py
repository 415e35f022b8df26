"""The prepacked cache: packed weights of earlier loads on disk, so that the next start reads instead of quantising.

    $XDG_CACHE_HOME/openautoglm/packed/      (or ~/.cache/...; mode 0700)
        <key>.packed                         one load's weights (mode 0600); the key is `packed_key`
        <key>.packed.<pid>-<random>.partial  being written, locked by its writer

A cache never fails a load: what cannot be read or written is a warning, unless the load needs the file, because weights
stay in it. The least recently used files go first when the total would exceed `max_bytes`, after files whose checkpoint
is gone and partial files whose writer died.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from openautoglm.checkpoint.packed_format import SOURCE_PROBE_BYTES, PackedLayout, read_source
from openautoglm.checkpoint.packed_reader import PackedReader
from openautoglm.checkpoint.packed_writer import PackedWriter
from openautoglm.errors import ConfigError, OutOfMemoryError
from openautoglm.log import get_logger
from openautoglm.spec.notices import NoticeCode, Notices
from openautoglm.units import GIB, MIB, format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OFF = "off"
# Below this, quantising takes less time than opening a file and checking it is worth.
MIN_SOURCE_BYTES = 64 * MIB
MAX_CACHE_BYTES = 64 * GIB
SPARE_DISK_BYTES = GIB

_OTHER_DIRECTORY = "free some, or choose another directory with --offload-dir"

_PACKED = re.compile(r"[0-9a-f]{64}\.packed", re.ASCII)
_PARTIAL = re.compile(r"[0-9a-f]{64}\.packed\.[0-9]+-[0-9a-f]{12}\.partial", re.ASCII)
_LOGGER = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedCache:
    """A directory of packed files, made when the first one is written.

    Checkpoints of less than `min_source_bytes` are not cached; all files together stay within `max_bytes`; nothing is
    written that would leave less than `spare_disk_bytes` free. `notices` hears of what could not be read or written.
    `required`: a file that cannot be written is an error, whatever the checkpoint's size.
    """

    directory: Path
    min_source_bytes: int = MIN_SOURCE_BYTES
    max_bytes: int = MAX_CACHE_BYTES
    spare_disk_bytes: int = SPARE_DISK_BYTES
    notices: Notices = field(default_factory=Notices, compare=False)
    required: bool = False

    def path(self, layout: PackedLayout) -> Path:
        """Return where a layout's file stands, whether it exists or not."""
        return self.directory / f"{layout.key.hex()}.packed"

    def open(self, layout: PackedLayout) -> PackedReader | None:
        """Return the file that holds `layout`, its header not yet checked, or None if there is none.

        Raises `OSError` and `PackedFileError`.
        """
        return PackedReader.open(self.path(layout), layout)

    def discard(self, reader: PackedReader) -> None:
        """Remove the file that was read, unless somebody has put another in its place."""
        try:
            if reader.path.stat(follow_symlinks=False).st_ino == reader.inode:
                reader.path.unlink()
        except OSError as error:
            _LOGGER.warning("%s cannot be removed (%s)", reader.path, error.strerror)

    @contextmanager
    def writer(self, layout: PackedLayout) -> Iterator[PackedWriter | None]:
        """Yield a writer of a layout's file, or None, with a log line, where it cannot or should not be written.

        A block that fails, is interrupted, or does not `publish` leaves no file. Raises `OutOfMemoryError` or
        `ConfigError` instead of yielding None where the file is required.
        """
        writer: PackedWriter | None = None
        try:
            if self._make_room(layout):
                writer = PackedWriter(self.path(layout), layout)
        except OSError as error:
            self._warn(error)
        try:
            yield writer
        finally:
            if writer is not None:
                writer.close()

    def wait_written(self, writer: PackedWriter, on_wait: Callable[[], None]) -> None:
        """Wait until what was added is on the disk.

        Raises `OutOfMemoryError` or `ConfigError` where the disk would not have it and the file is required.
        """
        try:
            writer.wait_written(on_wait)
        except OSError as error:
            self._warn(error)

    def publish(
        self,
        writer: PackedWriter,
        vectors: Sequence[NDArray[np.float32]],
        *,
        weights_digest: bytes,
        source: str,
        on_wait: Callable[[], None],
    ) -> bool:
        """Finish a file and give it its name; return False, with a warning, where the disk would not have it.

        Raises `OutOfMemoryError` or `ConfigError` instead where the file is required.
        """
        try:
            writer.finish(vectors, weights_digest=weights_digest, source=source, on_wait=on_wait)
        except OSError as error:
            self._warn(error)
            return False
        return True

    def usage(self) -> tuple[int, int]:
        """Return the number of packed files and their bytes; none where the directory cannot be read."""
        try:
            sizes = [status.st_size for _, status in self._entries(_PACKED)]
        except OSError as error:
            _LOGGER.warning("%s cannot be read (%s)", self.directory, error.strerror)
            return 0, 0
        return len(sizes), sum(sizes)

    def file_sizes(self) -> frozenset[int]:
        """Return the bytes of each packed file; none where the directory cannot be read."""
        try:
            return frozenset(status.st_size for _, status in self._entries(_PACKED))
        except OSError:
            return frozenset()

    def remove_stale(self) -> None:
        """Remove files whose checkpoint is gone, and partial files whose writer died."""
        for path, _ in self._entries(_PARTIAL):
            _remove_unused(path, "its writer died")
        for path, _ in self._entries(_PACKED):
            source = _source(path)
            if source and _vanished(source):
                _remove_unused(path, f"{source} is gone")

    def _make_room(self, layout: PackedLayout) -> bool:
        """Make the directory, and room in it within `max_bytes`; say whether the file may be written."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.remove_stale()
        if layout.file_bytes > self.max_bytes and not self.required:
            self.notices.add(
                NoticeCode.PACKED_CACHE_NOT_WRITTEN,
                f"packed weights are not cached: they take {format_bytes(layout.file_bytes)}, and the cache may hold "
                f"{format_bytes(self.max_bytes)}",
            )
            return False
        entries = [*self._entries(_PACKED), *self._entries(_PARTIAL)]
        total_bytes = sum(status.st_size for _, status in entries)
        for path, status in sorted(self._entries(_PACKED), key=lambda entry: entry[1].st_mtime_ns):
            if total_bytes + layout.file_bytes <= self.max_bytes:
                break
            if path != self.path(layout) and _remove_unused(path, "it was used longest ago"):
                total_bytes -= status.st_size
        free_bytes = shutil.disk_usage(self.directory).free
        if free_bytes < layout.file_bytes + self.spare_disk_bytes:
            shortage = (
                f"they take {format_bytes(layout.file_bytes)} and {format_bytes(self.spare_disk_bytes)} would stay "
                f"spare, but {self.directory} has only {format_bytes(free_bytes)} free"
            )
            if self.required:
                raise OutOfMemoryError(f"no room for the weights on disk: {shortage}: {_OTHER_DIRECTORY}")
            self.notices.add(NoticeCode.PACKED_CACHE_NOT_WRITTEN, f"packed weights are not cached: {shortage}")
            return False
        return True

    def _entries(self, pattern: re.Pattern[str]) -> list[tuple[Path, os.stat_result]]:
        """List this cache's own files; others that stand in the directory are none of its business."""
        found: list[tuple[Path, os.stat_result]] = []
        if self.directory.is_dir():
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        try:
                            found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
                        except FileNotFoundError:
                            continue  # another process removed or renamed it meanwhile
        return found

    def _warn(self, error: OSError) -> None:
        if self.required:
            kind = OutOfMemoryError if error.errno in (errno.ENOSPC, errno.EDQUOT) else ConfigError
            raise kind(
                f"weights cannot be kept on disk in {self.directory} ({error.strerror or error}): {_OTHER_DIRECTORY}"
            ) from error
        self.notices.add(
            NoticeCode.PACKED_CACHE_NOT_WRITTEN,
            f"packed weights are not cached in {self.directory} ({error.strerror or error}): the next start will "
            "quantise again; choose another directory with --cache, or none with --no-cache",
        )


def open_cache(
    setting: str | None, environment: Mapping[str, str] | None = None, *, notices: Notices | None = None
) -> PackedCache | None:
    """Return the cache of a setting: a directory, "off" (None is returned), or None for the user's default.

    `notices` hears of what goes wrong with it, and of a user who has no home for it.

    Raises `ConfigError` for a directory below the home of an unknown user.
    """
    notices = Notices() if notices is None else notices
    if setting == OFF:
        return None
    if setting is not None:
        try:
            return PackedCache(directory=Path(setting).expanduser(), notices=notices)
        except RuntimeError as error:
            raise ConfigError(f"the cache directory {setting!r} names no home directory: {error}") from error
    directory = default_directory(os.environ if environment is None else environment)
    if directory is None:
        notices.add(
            NoticeCode.PACKED_CACHE_NOT_WRITTEN,
            "packed weights are not cached: this user has no home directory; set HOME, --cache DIR or --no-cache",
        )
        return None
    return PackedCache(directory=directory, notices=notices)


def default_directory(environment: Mapping[str, str]) -> Path | None:
    """Return openautoglm/packed below $XDG_CACHE_HOME, else below ~/.cache; None for a user without a home.

    A relative $XDG_CACHE_HOME is ignored (https://specifications.freedesktop.org/basedir-spec).
    """
    base = environment.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "openautoglm" / "packed"
    home = environment.get("HOME", "")
    return Path(home) / ".cache" / "openautoglm" / "packed" if Path(home).is_absolute() else None


def _source(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return read_source(file.read(SOURCE_PROBE_BYTES))
    except OSError:
        return ""  # not ours to read, or gone: nothing is known of it


def _vanished(source: str) -> bool:
    try:
        Path(source).stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False  # out of reach, or no path: nothing is known of it
    return False


def _remove_unused(path: Path, reason: str) -> bool:
    """Remove a file that no process holds open here; say whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError as error:
        _LOGGER.debug("%s stays: %s", path, error.strerror)
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError as error:
        _LOGGER.debug("%s is in use or cannot be removed: %s", path, error.strerror)
        return False
    finally:
        os.close(descriptor)
    _LOGGER.info("removed %s: %s", path, reason)
    return True
