"""The cache as a whole: who writes, who is evicted, what a failing disk or an interruption leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from openautoglm.checkpoint.packed import PackedCache, default_directory, open_cache
from openautoglm.checkpoint.packed_format import PackedLayout
from openautoglm.errors import ConfigError
from tests.checkpoint.packed_files import begin, is_whole, make_cache, make_layout, publish, write

SCRIPT = """
import sys, time
from pathlib import Path
from tests.checkpoint.packed_files import begin, make_cache, make_layout
layout = make_layout()
with make_cache(Path(sys.argv[1])).writer(layout) as writer:
    begin(layout, writer)
    print("writing", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return make_cache(tmp_path / "cache")


@pytest.fixture
def layout() -> PackedLayout:
    return make_layout()


def files(cache: PackedCache) -> list[str]:
    return sorted(path.name for path in cache.directory.iterdir())


@contextmanager
def another_writer(cache: PackedCache) -> Iterator[subprocess.Popen[str]]:
    """A process that is in the middle of writing."""
    command = [sys.executable, "-c", SCRIPT, str(cache.directory)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_nothing(cache: PackedCache, layout: PackedLayout, kind: type[BaseException]) -> None:
    def fail() -> None:
        with cache.writer(layout) as writer:
            assert writer is not None
            begin(layout, writer)
            raise kind

    with pytest.raises(kind):
        fail()
    assert files(cache) == []


def test_ctrl_c_leaves_nothing(cache: PackedCache) -> None:
    with another_writer(cache) as process:
        assert len(files(cache)) == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
        assert files(cache) == []


def test_leftovers_of_a_killed_writer_go_and_those_of_a_living_one_stay(
    cache: PackedCache, layout: PackedLayout
) -> None:
    with another_writer(cache) as process:
        (partial,) = files(cache)
        assert partial.endswith(".partial")
        cache.remove_stale()
        assert files(cache) == [partial]
        process.kill()
        process.wait(20)
        write(cache, layout)
        assert files(cache) == [cache.path(layout).name]


def test_two_writers_at_once_end_with_one_good_file(cache: PackedCache, layout: PackedLayout) -> None:
    with cache.writer(layout) as first, cache.writer(layout) as second:
        assert first is not None
        assert second is not None
        assert len(files(cache)) == 2
        assert publish(cache, layout, first)
        assert is_whole(cache, layout)
        assert publish(cache, layout, second)
    assert is_whole(cache, layout)
    assert files(cache) == [cache.path(layout).name]


def test_many_writers_and_readers_never_meet_a_broken_file(cache: PackedCache, layout: PackedLayout) -> None:
    write(cache, layout)

    def work(_: int) -> bool:
        write(cache, layout)
        return is_whole(cache, layout)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(20)))
    assert files(cache) == [cache.path(layout).name]


def test_the_least_recently_used_file_goes_first(cache: PackedCache) -> None:
    layouts = [make_layout(name) for name in range(4)]
    cache = make_cache(cache.directory, max_bytes=3 * layouts[0].file_bytes)
    for seconds, layout in enumerate(layouts[:3]):
        os.utime(write(cache, layout), (seconds, seconds))
    (cache.directory / "notes.txt").write_text("not the cache's")
    assert is_whole(cache, layouts[0])  # its use makes 1 the oldest
    write(cache, layouts[3])
    assert not cache.path(layouts[1]).exists()
    assert all(cache.path(layouts[index]).exists() for index in (0, 2, 3))
    assert (cache.directory / "notes.txt").exists()
    assert cache.usage() == (3, 3 * layouts[0].file_bytes)


def test_a_file_that_is_being_read_stays(cache: PackedCache) -> None:
    old, new = make_layout(0), make_layout(1)
    write(cache, old)
    reader = cache.open(old)
    assert reader is not None
    with reader:
        write(make_cache(cache.directory, max_bytes=new.file_bytes), new)
        assert cache.path(old).exists()
    write(make_cache(cache.directory, max_bytes=new.file_bytes), new)
    assert not cache.path(old).exists()


def test_what_exceeds_the_limit_is_not_written(cache: PackedCache, layout: PackedLayout) -> None:
    write(cache, make_layout(1))
    small = make_cache(cache.directory, max_bytes=layout.file_bytes - 1)
    with small.writer(layout) as writer:
        assert writer is None
    assert is_whole(cache, make_layout(1))


def test_files_of_vanished_checkpoints_go(cache: PackedCache, tmp_path: Path) -> None:
    gone, here, unknown, odd, new = map(make_layout, range(5))
    (tmp_path / "here").mkdir()
    write(cache, odd, tmp_path / ("x" * 300))  # no file system can answer for such a name
    write(cache, gone, tmp_path / "gone")
    write(cache, here, tmp_path / "here")
    write(cache, unknown)
    assert not cache.path(gone).exists()  # the next writer has looked
    write(cache, new)
    assert cache.path(here).exists()
    assert cache.path(unknown).exists()
    assert cache.path(odd).exists()


def test_a_disk_with_too_little_room_is_left_alone(
    cache: PackedCache, layout: PackedLayout, caplog: pytest.LogCaptureFixture
) -> None:
    greedy = make_cache(cache.directory, spare_disk_bytes=1 << 62)
    with greedy.writer(layout) as writer:
        assert writer is None
    assert files(cache) == []
    assert "free" in caplog.text


@pytest.mark.parametrize("place", ["file/cache", "/proc/cache", "/dev/null"])
def test_a_directory_that_cannot_be_made_is_a_warning(
    tmp_path: Path, layout: PackedLayout, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = make_cache(tmp_path / place)
    with cache.writer(layout) as writer:
        assert writer is None
    assert "--no-cache" in caplog.text


def test_a_write_that_fails_is_a_warning(tmp_path: Path) -> None:
    """The kernel refuses to let files grow beyond a limit, in a process of its own."""
    script = """
import resource, sys
from pathlib import Path
from tests.checkpoint.packed_files import *
layout = make_layout()
resource.setrlimit(resource.RLIMIT_FSIZE, (layout.arena_begin + 5000, resource.RLIM_INFINITY))
cache = make_cache(Path(sys.argv[1]))
with cache.writer(layout) as writer:
    print(publish(cache, layout, writer))
print(list(cache.directory.iterdir()))
"""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    command = [sys.executable, "-c", script, str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n[]\n"
    assert "File too large" in done.stderr


def test_discarding_spares_what_somebody_else_put_there(cache: PackedCache, layout: PackedLayout) -> None:
    write(cache, layout)
    reader = cache.open(layout)
    assert reader is not None
    with reader:
        write(cache, layout)
        cache.discard(reader)
        assert is_whole(cache, layout)
    reader = cache.open(layout)
    assert reader is not None
    with reader:
        cache.discard(reader)
        cache.discard(reader)
    assert files(cache) == []


def test_the_setting_names_the_directory(tmp_path: Path) -> None:
    home = {"HOME": "/home/somebody"}
    assert default_directory(home) == Path("/home/somebody/.cache/openautoglm/packed")
    assert default_directory({**home, "XDG_CACHE_HOME": "/var/x"}) == Path("/var/x/openautoglm/packed")
    assert default_directory({**home, "XDG_CACHE_HOME": "relative"}) == default_directory(home)
    assert default_directory({}) is None
    assert open_cache("off") is None
    assert open_cache(None, {}) is None
    cache = open_cache(None, {"XDG_CACHE_HOME": str(tmp_path)})
    assert cache == PackedCache(directory=tmp_path / "openautoglm" / "packed")
    assert open_cache(str(tmp_path)) == PackedCache(directory=tmp_path)
    with pytest.raises(ConfigError, match="home"):
        open_cache("~nobody-of-this-name/cache")
