"""Layers on disk: a step's bytes do not depend on where weights are, and a disk that fails ends a step, no more."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openautoglm.checkpoint import packed_reader
from openautoglm.checkpoint.direct import open_direct
from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed import PackedCache
from openautoglm.errors import ConfigError, OutOfMemoryError, WeightReadError
from openautoglm.executor.load import load_model
from openautoglm.executor.native import NativeExecutor
from openautoglm.families.registry import describe, read_config, weight_map
from openautoglm.memory.ledger import Ledger
from openautoglm.memory.offload import layer_disk_bytes, layer_rooms, ring_bytes
from openautoglm.probe.page_cache import cached_bytes
from openautoglm.spec.formats import ModelFormats, NumberFormat
from openautoglm.spec.offload import OffloadPlan
from openautoglm.spec.plan import Plan
from tests.executor.runner import Row, Runner
from tests.executor.tiny_models import make_plan, make_reference, save_checkpoint

FORMATS = {name: ModelFormats.for_quantisation(NumberFormat(name)) for name in ("f32", "bf16", "int8", "int4", "nf4")}
INT8 = FORMATS["int8"]
NUM_LAYERS = 4
TOKENS = np.random.default_rng(3).integers(0, 160, 40).tolist()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    layers = {"num_hidden_layers": NUM_LAYERS}
    return {name: save_checkpoint(make_reference(name, **layers), root / name) for name in ("glm4", "qwen3")}


@pytest.fixture
def model(models: dict[str, Path]) -> Path:
    return models["qwen3"]


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return PackedCache(directory=tmp_path / "cache", spare_disk_bytes=0)


def plan_for(directory: Path, formats: ModelFormats, layers: Sequence[int], num_threads: int = 2) -> Plan:
    plan = make_plan(formats, num_threads=num_threads)
    if not layers:
        return plan
    spec = describe(read_config(directory))
    sizes = layer_disk_bytes(spec, formats)
    rooms = layer_rooms(spec, formats)
    ring = ring_bytes([rooms[layer] for layer in layers])
    offload = OffloadPlan(
        layers=tuple(layers),
        file_bytes=0,
        disk_bytes=sum(sizes[layer] for layer in layers),
        ring_bytes=ring,
        num_readers=3,
    )
    return replace(plan, offload=offload, breakdown=replace(plan.breakdown, ring_bytes=ring))


@contextmanager
def loaded(
    directory: Path, plan: Plan, cache: PackedCache | None, ledger: Ledger | None = None
) -> Iterator[NativeExecutor]:
    config = read_config(directory)
    spec = describe(config)
    with Checkpoint.open(directory) as checkpoint:
        weights = weight_map(spec, config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
        executor = load_model(checkpoint, spec, weights, plan, cache=cache, ledger=ledger)
    try:
        yield executor
    finally:
        executor.close()


def outcome(executor: NativeExecutor) -> tuple[str, bytes, bytes]:
    """Return the fingerprint, the logits of a prompt at once, and those of a prompt token by token."""
    runner = Runner(executor=executor)
    whole = runner.run(TOKENS, [0, 1, 2])
    return executor.determinism(), whole.tobytes(), runner.run(TOKENS[:20], [4, 5], chunk=1).tobytes()


def step(executor: NativeExecutor) -> bytes:
    return Runner(executor=executor).step([Row(tokens=TOKENS, blocks=[0, 1, 2])])[0].tobytes()


def packed_file(cache: PackedCache) -> Path:
    (path,) = cache.directory.iterdir()
    return path


@pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("name", ["glm4", "qwen3"])
def test_where_layers_are_changes_no_byte(
    models: dict[str, Path], cache: PackedCache, name: str, formats: ModelFormats
) -> None:
    directory = models[name]
    with loaded(directory, plan_for(directory, formats, ()), None) as executor:
        expected = outcome(executor)
        in_memory = executor.weight_bytes
    for layers in ((1,), (0, 2), (0, 1, 2, 3)):  # the first load packs and writes, the others read
        plan = plan_for(directory, formats, layers)
        with loaded(directory, plan, cache) as executor:
            assert outcome(executor) == expected
            assert outcome(executor) == expected
            assert plan.offload is not None
            assert 0 <= in_memory - executor.weight_bytes - plan.offload.disk_bytes + 4096 <= 8192  # whole pages
            assert executor.ring_bytes >= plan.offload.ring_bytes > 0
            assert executor.streamed_bytes >= 42 * plan.offload.disk_bytes
    assert packed_file(cache).suffix == ".packed"


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_change_no_byte(model: Path, cache: PackedCache, num_threads: int) -> None:
    with loaded(model, plan_for(model, INT8, ()), None) as executor:
        expected = outcome(executor)
    with loaded(model, plan_for(model, INT8, (0, 1, 3), num_threads), cache) as executor:
        assert outcome(executor) == expected


def test_a_load_with_layers_on_disk_leaves_a_cache_for_one_without(
    model: Path, cache: PackedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loaded(model, plan_for(model, INT8, (0, 2)), cache) as executor:
        expected = outcome(executor)

    def read_rows(*_: object) -> None:
        raise AssertionError("the checkpoint's weights were read")

    monkeypatch.setattr(Checkpoint, "read_rows", read_rows)
    with loaded(model, plan_for(model, INT8, ()), replace(cache, min_source_bytes=1)) as executor:
        assert outcome(executor) == expected


def test_a_damaged_file_is_rebuilt_at_load(model: Path, cache: PackedCache, caplog: pytest.LogCaptureFixture) -> None:
    with loaded(model, plan_for(model, INT8, (1, 2)), cache) as executor:
        expected = outcome(executor)
    path = packed_file(cache)
    good = path.read_bytes()
    for position in (len(good) // 2, len(good) - 1):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with loaded(model, plan_for(model, INT8, (0, 1, 2, 3)), cache) as executor:
            assert outcome(executor) == expected
        assert "damaged" in caplog.text
        assert path.read_bytes() == good


def failing_steps(executor: NativeExecutor, words: str) -> None:
    """Step until it fails, which it must do soon: what was read ahead may still be good."""

    def several() -> None:
        for _ in range(3):
            step(executor)

    with pytest.raises(WeightReadError, match=words):
        several()


def test_a_file_that_is_changed_in_place_is_noticed_and_healed(model: Path, cache: PackedCache) -> None:
    with loaded(model, plan_for(model, INT8, (1, 2)), cache) as executor:
        expected = step(executor)
        path = packed_file(cache)
        good = path.read_bytes()
        times = path.stat()
        with path.open("r+b") as file:
            file.write(b"\xff" * len(good))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        failing_steps(executor, "checksum")
        with pytest.raises(WeightReadError, match="checksum"):
            step(executor)
        with path.open("r+b") as file:
            file.write(good)
        assert step(executor) == expected


def test_a_truncated_file_is_noticed(model: Path, cache: PackedCache) -> None:
    with loaded(model, plan_for(model, INT8, (1, 2)), cache) as executor:
        step(executor)
        os.truncate(packed_file(cache), 8192)
        failing_steps(executor, "truncated")


def test_a_file_that_is_replaced_or_removed_stays_in_use(model: Path, cache: PackedCache) -> None:
    with loaded(model, plan_for(model, INT8, (1, 2)), cache) as executor:
        expected = step(executor)
        path = packed_file(cache)
        other = path.with_suffix(".other")
        other.write_bytes(bytes(path.stat().st_size))
        other.rename(path)
        assert [step(executor) for _ in range(3)] == [expected] * 3
        path.unlink()
        assert step(executor) == expected


def test_a_file_in_use_is_not_evicted(model: Path, cache: PackedCache) -> None:
    with loaded(model, plan_for(model, INT8, (1, 2)), cache):
        path = packed_file(cache)
        tight = replace(cache, max_bytes=path.stat().st_size + 1)
        with loaded(model, plan_for(model, FORMATS["int4"], (0,)), tight):
            assert path.exists()
            assert len(list(cache.directory.iterdir())) == 2


def drop_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_reading_leaves_nothing_in_the_page_cache(model: Path, cache: PackedCache) -> None:
    with loaded(model, plan_for(model, INT8, range(NUM_LAYERS)), cache) as executor:
        assert executor.direct_reads
        drop_pages(packed_file(cache))
        before = cached_bytes(packed_file(cache))
        for _ in range(3):
            step(executor)
        assert cached_bytes(packed_file(cache)) <= before


def test_a_file_system_without_direct_reads_is_said_and_drops_its_pages(
    model: Path, cache: PackedCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packed_reader, "open_direct", lambda path: (os.open(path, os.O_RDONLY | os.O_CLOEXEC), False))
    with loaded(model, plan_for(model, INT8, ()), None) as executor:
        expected = step(executor)
    with caplog.at_level(logging.WARNING), loaded(model, plan_for(model, INT8, (0, 1, 2, 3)), cache) as executor:
        assert executor.direct_reads is False
        assert "no direct reads" in caplog.text
        assert [step(executor) for _ in range(5)] == [expected] * 5
        # A matrix ends inside a page, which stays for the next one; what was read ahead is dropped as well.
        assert cached_bytes(packed_file(cache)) <= packed_file(cache).stat().st_size // 4 + 65536


def test_what_refuses_direct_reads_is_opened_without(tmp_path: Path) -> None:
    descriptor, direct = open_direct(Path("/proc/self/status"))
    os.close(descriptor)
    assert not direct
    with pytest.raises(OSError, match="No such file") as caught:
        open_direct(tmp_path / "none")
    assert caught.value.errno == errno.ENOENT


def test_a_disk_without_room_is_an_error(model: Path, cache: PackedCache) -> None:
    greedy = replace(cache, spare_disk_bytes=1 << 62)
    with pytest.raises(OutOfMemoryError, match="--offload-dir"), loaded(model, plan_for(model, INT8, (1,)), greedy):
        pass
    assert list(cache.directory.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_an_error(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = PackedCache(directory=tmp_path / "file" / "cache")
    plan = plan_for(model, INT8, (1,))
    with pytest.raises(ConfigError, match="--offload-dir"), loaded(model, plan, blocked):
        pass
    with pytest.raises(ConfigError, match="directory"), loaded(model, plan, None):
        pass


def test_the_ledger_is_charged_for_the_ring(model: Path, cache: PackedCache) -> None:
    plan = plan_for(model, INT8, (1, 2))
    ledger = Ledger(1 << 30)
    with loaded(model, plan, cache, ledger):
        assert ledger.usage()["ring of weights on disk"] == plan.breakdown.ring_bytes > 0
    assert ledger.in_use_bytes == 0
