"""A disk that is really full while packed weights are written to it: no cache, one warning, and the same answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed import PackedCache
from openautoglm.errors import OutOfMemoryError
from openautoglm.executor.load import load_model
from openautoglm.families.registry import describe, read_config, weight_map
from openautoglm.progress import Progress
from openautoglm.spec.notices import Notices
from openautoglm.spec.plan import Plan
from tests.executor.runner import Runner
from tests.executor.test_offload import INT8, TOKENS, plan_for
from tests.executor.tiny_models import make_reference, save_checkpoint

pytestmark = pytest.mark.cgroup  # mounting needs root, as control groups do

SPARE_BYTES = 96 << 10  # less than half of the packed file


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = {"num_hidden_layers": 4}
    return save_checkpoint(make_reference("qwen3", **layers), tmp_path_factory.mktemp("model") / "qwen3")


def logits(directory: Path, plan: Plan, cache: PackedCache | None, fill: Path | None = None) -> bytes:
    """Load and run one prompt; `fill`: a file that takes nearly all that is free, once the load has begun to pack."""

    def progress(news: Progress) -> None:
        if fill is not None and not fill.exists() and news.done_bytes > 0:
            usage = os.statvfs(fill.parent)
            fill.write_bytes(bytes(usage.f_bavail * usage.f_bsize - SPARE_BYTES))

    config = read_config(directory)
    spec = describe(config)
    with Checkpoint.open(directory) as checkpoint:
        weights = weight_map(spec, config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
        executor = load_model(checkpoint, spec, weights, plan, progress=progress, cache=cache)
    try:
        return Runner(executor=executor).run(TOKENS, [0, 1, 2]).tobytes()
    finally:
        executor.close()


def test_a_disk_that_fills_up_is_one_warning(model: Path, disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan, notices = plan_for(model, INT8, ()), Notices()
    cache = PackedCache(directory=disk / "cache", min_source_bytes=1, spare_disk_bytes=0, notices=notices)
    expected = logits(model, plan, None)
    assert logits(model, plan, cache, disk / "ballast") == expected
    assert list(cache.directory.iterdir()) == []
    assert [notice.code.value for notice in notices.taken()] == ["packed_cache_not_written"]
    assert "No space left on device" in caplog.text
    assert caplog.text.count("not cached") == 1
    (disk / "ballast").unlink()
    assert logits(model, plan, cache) == expected  # there is room again: the next load is cached
    (packed,) = cache.directory.iterdir()
    assert packed.stat().st_size > 2 * SPARE_BYTES


def test_layers_on_a_disk_that_fills_up_are_a_typed_error(model: Path, disk: Path) -> None:
    cache = PackedCache(directory=disk / "cache", spare_disk_bytes=0)
    with pytest.raises(OutOfMemoryError, match=r"No space left on device.*--offload-dir"):
        logits(model, plan_for(model, INT8, (1, 2)), cache, disk / "ballast")
    assert list(cache.directory.iterdir()) == []


def test_a_small_disk_serves_without_a_cache_and_says_so_once(disk: Path) -> None:
    """From outside: nothing is written where packed weights do not fit, and layers cannot be placed there."""
    ask = [sys.executable, "-m", "openautoglm", "run", "demo", "once upon", "--raw", "--max-tokens", "4"]
    place = ["--offload-dir", str(disk), "--place", "layers.1=disk"]
    done = subprocess.run([*ask, *place], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert f"{disk} can take 0 B" in done.stderr
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert list(disk.iterdir()) == []
