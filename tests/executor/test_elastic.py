"""An executor whose KV pool and workspace change size: exact bytes, exact charges, unchanged results."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from openautoglm.engine.assemble import EngineOptions, OpenedEngine, open_engine, prepare
from openautoglm.errors import OutOfMemoryError, StepRefusedError
from openautoglm.families.registry import describe, read_config
from openautoglm.memory.workspace import workspace_bytes
from openautoglm.spec.formats import ModelFormats, NumberFormat
from openautoglm.spec.goal import Goal
from tests.executor.runner import Row, Runner
from tests.executor.test_native import tokens_of
from tests.executor.tiny_models import load_checkpoint, make_plan, make_reference, save_checkpoint

PAGE = 4096
# Of every array that depends on the step's tokens, the page in which a smaller step ends stays whole.
NUM_TOKEN_ARRAYS = 16


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(make_reference("glm4"), tmp_path_factory.mktemp("models") / "glm4")


@pytest.fixture
def demo() -> Iterator[OpenedEngine]:
    goal = Goal(memory_bytes=1 << 30, context_tokens=512, concurrency=4, quant=NumberFormat.INT8, num_threads=2)
    opened = open_engine(prepare(EngineOptions(model="demo", goal=goal)))
    yield opened
    opened.engine.close()


@pytest.mark.parametrize("quant", ["f32", "int8", "nf4"])
def test_a_smaller_step_takes_what_a_workspace_of_its_size_takes(quant: str, directory: Path) -> None:
    formats = ModelFormats.for_quantisation(NumberFormat(quant))
    spec = describe(read_config(directory))
    loaded = load_checkpoint(directory, make_plan(formats, num_threads=2, max_step_tokens=2048))
    runner = Runner(executor=loaded)
    blocks = list(range(13))
    expected = runner.run(tokens_of(200), blocks)
    whole = loaded.workspace_bytes
    for limit in (512, 64, 1, 2048):
        loaded.limit_step_tokens(limit)
        assert loaded.layout().max_step_tokens == limit
        formula = workspace_bytes(spec, formats, max_step_tokens=limit, max_step_rows=16, num_threads=2)
        assert formula - PAGE <= loaded.workspace_bytes <= formula + NUM_TOKEN_ARRAYS * PAGE
        assert runner.run(tokens_of(200), blocks, min(limit, 200)).tobytes() == expected.tobytes()
        if limit < 2048:
            with pytest.raises(StepRefusedError, match=f"over the limit of {limit} tokens"):
                runner.step([Row(tokens=tokens_of(limit + 1), blocks=list(range(64)))])
    assert loaded.workspace_bytes == whole
    for limit in (0, -5, 2049):
        with pytest.raises(ValueError, match="1 to 2048"):
            loaded.limit_step_tokens(limit)
    loaded.close()


def test_what_a_large_step_wrote_is_given_back(directory: Path) -> None:
    loaded = load_checkpoint(
        directory, make_plan(ModelFormats.for_quantisation(NumberFormat.F32), max_step_tokens=4096)
    )
    Runner(executor=loaded).step([Row(tokens=tokens_of(250), blocks=list(range(16)))])
    decoder = loaded._open().decoder
    before = decoder.workspace_resident_bytes
    given = loaded.limit_step_tokens(16)
    assert given >= 234 * 64 * 4 // PAGE * PAGE, "at least the hidden states of 234 tokens"
    assert before - decoder.workspace_resident_bytes == given
    assert decoder.workspace_resident_bytes <= loaded.workspace_bytes
    loaded.close()


def test_the_ledger_follows_the_sizes_exactly(demo: OpenedEngine) -> None:
    executor, ledger = demo.executor, demo.ledger
    usage = ledger.usage()
    num_blocks = executor.layout().num_blocks
    assert executor.layout().max_blocks > num_blocks, "the budget may be raised while it runs"
    executor.touch()
    block_bytes = executor.layout().groups[0].block_bytes
    given = executor.resize_blocks(num_blocks // 4)
    cut = -(-num_blocks * block_bytes // PAGE) * PAGE - executor.kv_bytes
    assert given == cut == usage["KV pool"] - ledger.usage()["KV pool"]
    workspace = executor.workspace_bytes
    executor.limit_step_tokens(8)
    assert usage["workspace"] - ledger.usage()["workspace"] == workspace - executor.workspace_bytes > 0
    executor.resize_blocks(num_blocks)
    executor.limit_step_tokens(demo.plan.max_step_tokens)
    assert ledger.usage() == usage


def test_growth_is_charged_before_it_is_taken_and_refused_whole(demo: OpenedEngine) -> None:
    executor, ledger = demo.executor, demo.ledger
    num_blocks, step_tokens = executor.layout().num_blocks, demo.plan.max_step_tokens
    executor.resize_blocks(10)
    executor.limit_step_tokens(8)
    ledger.set_budget(ledger.in_use_bytes + PAGE)
    usage = ledger.usage()
    with pytest.raises(OutOfMemoryError, match="KV pool asks for"):
        executor.resize_blocks(num_blocks)
    with pytest.raises(OutOfMemoryError, match="workspace asks for"):
        executor.limit_step_tokens(step_tokens)
    assert (executor.layout().num_blocks, executor.layout().max_step_tokens) == (10, 8)
    assert ledger.usage() == usage
    for wrong in (0, executor.layout().max_blocks + 1):
        with pytest.raises(ValueError, match="the KV pool can have 1 to"):
            executor.resize_blocks(wrong)


def test_growth_that_the_system_refuses_gives_its_charge_back(demo: OpenedEngine) -> None:
    executor, ledger = demo.executor, demo.ledger
    ledger.set_budget(1 << 60)
    usage = ledger.usage()
    layout = executor.layout()
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 20, limits[1]))
    try:
        with pytest.raises(OutOfMemoryError, match=f"the system has no memory for a KV pool of {layout.max_blocks}"):
            executor.resize_blocks(layout.max_blocks)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)
    assert ledger.usage() == usage
    assert executor.layout().num_blocks == layout.num_blocks
