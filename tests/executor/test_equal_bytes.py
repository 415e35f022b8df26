"""A token's bytes do not depend on its batch, on chunks, threads, cached prefixes or the blocks that hold its keys."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from openautoglm.executor.native import NativeExecutor
from openautoglm.spec.formats import ModelFormats, NumberFormat
from tests.executor.runner import Row, Runner, make_batch, make_samples
from tests.executor.tiny_models import load_checkpoint, make_plan, make_reference, save_checkpoint

QUANTS = ["f32", "bf16", "int8", "int4", "nf4", "int8 kv int8", "int4 kv fp8", "f32 kv int8"]
LENGTH = 61


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    long = {"num_hidden_layers": 2, "max_position_embeddings": 1024, "num_key_value_heads": 1}
    return {
        "glm4": save_checkpoint(make_reference("glm4"), root / "glm4"),
        "qwen3": save_checkpoint(make_reference("qwen3"), root / "qwen3"),
        "mistral": save_checkpoint(make_reference("mistral"), root / "mistral"),
        "long": save_checkpoint(make_reference("llama", **long), root / "long"),
        "long-window": save_checkpoint(make_reference("mistral", **long, sliding_window=300), root / "long-window"),
    }


@pytest.fixture(params=["glm4", "qwen3", "mistral"])
def directory(request: pytest.FixtureRequest, directories: dict[str, Path]) -> Path:
    return directories[request.param]


@pytest.fixture(params=QUANTS)
def formats(request: pytest.FixtureRequest) -> ModelFormats:
    return formats_named(request.param)


def formats_named(name: str) -> ModelFormats:
    """Return the formats of "quant" or "quant kv format"."""
    quant, _, kv = name.partition(" kv ")
    return ModelFormats.for_quantisation(NumberFormat(quant), kv=NumberFormat(kv) if kv else None)


@pytest.fixture
def executor(directory: Path, formats: ModelFormats) -> Iterator[NativeExecutor]:
    loaded = load_checkpoint(directory, make_plan(formats))
    yield loaded
    loaded.close()


def sequence(index: int, length: int = LENGTH) -> list[int]:
    return np.random.default_rng(index).integers(0, 160, length).tolist()


def test_batches_chunks_and_blocks_change_no_byte(executor: NativeExecutor) -> None:
    runner = Runner(executor=executor)
    tokens = sequence(0)
    alone = runner.run(tokens, [0, 1, 2, 3])

    assert runner.run(tokens, [4, 5, 6, 7], chunk=5).tobytes() == alone.tobytes()
    assert runner.run(tokens, [8, 9, 10, 11], chunk=1).tobytes() == alone.tobytes()
    assert runner.run(tokens, [11, 2, 30, 7]).tobytes() == alone.tobytes()

    others = [
        Row(tokens=sequence(index, 1 + 3 * index), blocks=[40 + 2 * index, 41 + 2 * index]) for index in range(1, 7)
    ]
    batch = runner.step([*others[:3], Row(tokens=tokens[:40], blocks=[12, 13, 14, 15]), *others[3:]])
    assert batch[3].tobytes() == alone[:40].tobytes()
    decoding = [
        Row(tokens=sequence(index, 2)[1:], blocks=row.blocks, begin=len(row.tokens)) for index, row in enumerate(others)
    ]
    for position in range(40, LENGTH):
        row = Row(tokens=tokens[position : position + 1], blocks=[12, 13, 14, 15], begin=position)
        logits = runner.step([*decoding[: position % 7], row, *decoding[position % 7 :]])[position % 7]
        assert logits.tobytes() == alone[position].tobytes()


def test_a_cached_prefix_changes_no_byte(executor: NativeExecutor) -> None:
    runner = Runner(executor=executor)
    tokens = sequence(0)
    alone = runner.run(tokens, [0, 1, 2, 3])
    row = Row(tokens=tokens[32:], blocks=[0, 1, 20, 21], begin=32)
    assert runner.step([row])[0].tobytes() == alone[32:].tobytes()


@pytest.mark.parametrize("num_threads", [1, 2, 3, 5])
def test_threads_change_no_byte(directory: Path, formats: ModelFormats, num_threads: int) -> None:
    one = load_checkpoint(directory, make_plan(formats, num_threads=1))
    several = load_checkpoint(directory, make_plan(formats, num_threads=num_threads))
    tokens = sequence(0)
    expected = Runner(executor=one).run(tokens, [0, 1, 2, 3])
    assert Runner(executor=several).run(tokens, [0, 1, 2, 3]).tobytes() == expected.tobytes()
    decoded = Runner(executor=several).run(tokens[:20], [8, 9], chunk=1)
    assert decoded.tobytes() == expected[:20].tobytes()
    assert one.determinism() == several.determinism()
    one.close()
    several.close()


@pytest.mark.parametrize("name", ["long", "long-window"])
@pytest.mark.parametrize("quant", ["f32", "bf16", "int8 kv int8", "f32 kv fp8"])
def test_splitting_a_long_context_over_threads_changes_no_byte(
    directories: dict[str, Path], name: str, quant: str
) -> None:
    formats = formats_named(quant)
    tokens, blocks = sequence(0, 700), list(range(44))
    logits = []
    for num_threads in (1, 3):
        executor = load_checkpoint(directories[name], make_plan(formats, num_threads=num_threads))
        runner = Runner(executor=executor)
        runner.run(tokens[:690], blocks, chunk=96)
        logits.append(
            np.concatenate(
                [
                    runner.step([Row(tokens=tokens[position : position + 1], blocks=blocks, begin=position)])[0]
                    for position in range(690, 700)
                ]
            )
        )
        executor.close()
    assert logits[0].tobytes() == logits[1].tobytes()


def test_garbage_in_unused_memory_changes_no_byte(executor: NativeExecutor) -> None:
    runner = Runner(executor=executor)
    tokens = sequence(0, 45)
    alone = runner.run(tokens, [0, 1, 2])
    layout = executor.layout()
    block_bytes = layout.groups[0].block_bytes
    executor.import_blocks(
        list(range(layout.num_blocks)), b"\xff" * (block_bytes * layout.num_blocks)
    )  # NaN everywhere
    assert runner.run(tokens, [5, 9, 3], chunk=7).tobytes() == alone.tobytes()


def test_nan_in_one_row_stays_there(executor: NativeExecutor) -> None:
    runner = Runner(executor=executor)
    tokens = sequence(0, 33)
    alone = runner.run(tokens, [0, 1, 2])
    rows = [Row(tokens=tokens, blocks=[3, 4, 5]), Row(tokens=[5], blocks=[6, 7, 8], begin=40)]
    executor.import_blocks([6, 7, 8], b"\xff" * (3 * executor.layout().groups[0].block_bytes))
    batch = make_batch(rows, make_samples([32, 33], num_logprobs=2))
    result = executor.submit(batch).result()
    assert result.logits is not None
    assert result.logits[:33].tobytes() == alone.tobytes()
    assert np.isnan(result.logits[33]).all()
    assert result.num_tokens.tolist() == [1, 0]
    assert result.tokens[0, 0] == alone[32].argmax()
    assert result.top_tokens[1].tolist() == [-1, -1]
