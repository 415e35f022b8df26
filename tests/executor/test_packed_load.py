"""Loads through the prepacked cache: the same bytes out as without it, whatever state its files are in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from openautoglm.checkpoint.index import Checkpoint
from openautoglm.checkpoint.packed import PackedCache
from openautoglm.executor.load import load_model
from openautoglm.families.registry import describe, read_config, weight_map
from openautoglm.native import _core
from openautoglm.progress import Progress, ProgressCallback
from openautoglm.spec.formats import PACKED_LAYOUT_VERSION, ModelFormats, NumberFormat
from tests.executor.runner import Runner
from tests.executor.tiny_models import make_plan, make_reference, save_checkpoint

TOKENS = np.random.default_rng(3).integers(0, 160, 40).tolist()
INT8 = ModelFormats.for_quantisation(NumberFormat.INT8)
QUANTISED = {
    "int8": INT8,
    "int4": ModelFormats.for_quantisation(NumberFormat.INT4),
    "int4-g32": ModelFormats.for_quantisation(NumberFormat.INT4, group=32),
    "nf4": ModelFormats.for_quantisation(NumberFormat.NF4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a load is judged by."""

    fingerprint: str
    logits: bytes
    weight_bytes: int


def run(
    directory: Path,
    cache: PackedCache | None,
    formats: ModelFormats = INT8,
    *,
    progress: ProgressCallback | None = None,
    num_threads: int = 2,
) -> Outcome:
    """Load a checkpoint, run one sequence, and return what came out."""
    config = read_config(directory)
    spec = describe(config)
    with Checkpoint.open(directory) as checkpoint:
        weights = weight_map(spec, config, {name: tensor.shape for name, tensor in checkpoint.tensors.items()})
        plan = make_plan(formats, num_threads=num_threads)
        executor = load_model(checkpoint, spec, weights, plan, progress=progress, cache=cache)
    try:
        logits = Runner(executor=executor).run(TOKENS, [0, 1, 2])
        return Outcome(fingerprint=executor.determinism(), logits=logits.tobytes(), weight_bytes=executor.weight_bytes)
    finally:
        executor.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_checkpoint(make_reference(name), root / name) for name in ("glm4", "qwen3", "qwen2")}


@pytest.fixture
def model(models: dict[str, Path]) -> Path:
    return models["qwen3"]


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return PackedCache(directory=tmp_path / "cache", min_source_bytes=1, spare_disk_bytes=0)


def files(cache: PackedCache) -> list[Path]:
    return sorted(cache.directory.iterdir()) if cache.directory.exists() else []


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_rows(*_: object) -> None:
        raise AssertionError("the checkpoint's weights were read")

    monkeypatch.setattr(Checkpoint, "read_rows", read_rows)


@pytest.mark.parametrize("formats", QUANTISED.values(), ids=QUANTISED)
@pytest.mark.parametrize("name", ["glm4", "qwen3", "qwen2"])
def test_a_cached_load_is_equal_by_bytes(
    models: dict[str, Path], cache: PackedCache, name: str, formats: ModelFormats, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = run(models[name], None, formats)
    assert run(models[name], cache, formats) == without
    assert len(files(cache)) == 1
    forbid_reading(monkeypatch)
    assert run(models[name], cache, formats) == without
    assert run(models[name], cache, formats, num_threads=1) == without


def test_each_format_has_its_own_file(model: Path, cache: PackedCache) -> None:
    for number, formats in enumerate(QUANTISED.values(), start=1):
        without = run(model, None, formats)
        assert run(model, cache, formats) == without
        assert len(files(cache)) == number
    assert run(model, cache, INT8) == run(model, None, INT8)


def test_caches_of_keys_and_values_share_the_packed_weights(
    model: Path, cache: PackedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = run(model, None, replace(INT8, kv=NumberFormat.INT8))
    wide = run(model, cache, INT8)
    forbid_reading(monkeypatch)
    assert run(model, cache, replace(INT8, kv=NumberFormat.INT8)) == without
    assert without.fingerprint != wide.fingerprint
    assert without.logits != wide.logits
    assert len(files(cache)) == 1


def test_unquantised_small_and_uncached_loads_write_nothing(model: Path, cache: PackedCache) -> None:
    run(model, cache, ModelFormats.for_quantisation(NumberFormat.BF16))
    run(model, PackedCache(directory=cache.directory))
    run(model, None)
    assert files(cache) == []


@pytest.mark.parametrize("arena_only", [True, False])
def test_a_damaged_file_is_replaced(
    tmp_path: Path, cache: PackedCache, arena_only: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_checkpoint(make_reference("llama", vocab_size=170), tmp_path / "model")  # its last tile has padding
    without = run(model, None)
    run(model, cache)
    (path,) = files(cache)
    good = path.read_bytes()
    # All ones, also where the padding of tiles must be zero; the header says at byte 56 where the arena begins.
    begin = int.from_bytes(good[56:64], "little") if arena_only else 0
    path.write_bytes(good[:begin] + b"\xff" * (len(good) - begin))
    assert run(model, cache) == without
    assert "damaged" in caplog.text
    assert path.read_bytes() == good


def test_a_truncated_file_is_replaced(model: Path, cache: PackedCache) -> None:
    without = run(model, None)
    run(model, cache)
    (path,) = files(cache)
    good = path.read_bytes()
    os.truncate(path, len(good) - 1)
    assert run(model, cache) == without
    assert path.read_bytes() == good


def test_a_file_that_others_may_write_is_not_believed(
    model: Path, cache: PackedCache, caplog: pytest.LogCaptureFixture
) -> None:
    without = run(model, cache)
    (path,) = files(cache)
    path.chmod(0o666)
    assert run(model, cache) == without
    assert "trusted" in caplog.text
    assert path.stat().st_mode & 0o777 == 0o600  # its place was taken


def test_a_changed_checkpoint_is_read_again(tmp_path: Path, cache: PackedCache) -> None:
    directory = save_checkpoint(make_reference("llama", seed=0), tmp_path / "model")
    times = (directory / "model.safetensors").stat()
    first = run(directory, cache)
    save_checkpoint(make_reference("llama", seed=1), directory)
    os.utime(directory / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (directory / "model.safetensors").stat().st_size == times.st_size
    second = run(directory, cache)
    assert second == run(directory, None)
    assert second.logits != first.logits


def touch(directory: Path) -> None:
    os.utime(directory / "model.safetensors", (1, 1))


def block_config(directory: Path) -> None:
    config = directory / "config.json"
    if config.is_file():
        config.unlink()
        config.mkdir()


@pytest.mark.parametrize("change", [touch, block_config])
def test_a_checkpoint_that_changes_while_it_is_loaded_is_not_cached(
    tmp_path: Path, cache: PackedCache, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    directory = save_checkpoint(make_reference("llama"), tmp_path / "model")

    def progress(news: Progress) -> None:
        if news.done_bytes < news.total_bytes and not caplog.records:
            change(directory)

    run(directory, cache, progress=progress)
    assert files(cache) == []
    assert "changed" in caplog.text


def test_an_interrupted_load_leaves_nothing(model: Path, cache: PackedCache) -> None:
    def interrupt(news: Progress) -> None:
        if news.done_bytes > news.total_bytes // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, cache, progress=interrupt)
    assert files(cache) == []
    without = run(model, cache)
    with pytest.raises(KeyboardInterrupt):
        run(model, cache, progress=interrupt)
    assert run(model, cache) == without


def test_progress_of_a_cached_load_ends_at_its_total(model: Path, cache: PackedCache) -> None:
    run(model, cache)
    news: list[Progress] = []
    run(model, cache, progress=news.append)
    assert news
    assert {item.stage for item in news} == {"load"}
    assert news[-1].done_bytes == news[-1].total_bytes


def test_a_cache_that_cannot_be_written_is_a_warning(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = PackedCache(directory=tmp_path / "file" / "cache", min_source_bytes=1)
    assert run(model, blocked) == run(model, None)
    assert "not cached" in caplog.text


def test_packed_bytes_are_those_of_their_layout_version() -> None:
    """Files of packed weights outlive the code that wrote them: whoever changes a byte counts the version up."""
    counter = np.arange(70 * 300, dtype=np.uint64).reshape(70, 300)
    mixed = (counter * np.uint64(2654435761)) % np.uint64(1 << 24)
    source = (mixed.astype(np.float32) / np.float32(1 << 23) - np.float32(1)) * np.float32(0.0625)
    formats = (("int8", 0), ("int4", 32), ("int4", 64), ("int4", 128), ("nf4", 32), ("nf4", 64), ("nf4", 128))
    for isa in _core.available_isas():
        digest = hashlib.blake2b(digest_size=8)
        for name, group in formats:
            digest.update(_core.pack(name, group, source, isa).tobytes())
        assert (PACKED_LAYOUT_VERSION, digest.hexdigest()) == (1, "ce498472a8021f73"), isa
