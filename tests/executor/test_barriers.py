"""How often the threads of a step wait for each other: a cost that no output shows and that grows with every layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from openautoglm.executor.native import NativeExecutor
from openautoglm.spec.formats import ModelFormats, NumberFormat
from tests.executor.runner import Row, make_batch, make_samples
from tests.executor.tiny_models import load_checkpoint, make_plan, make_reference, save_checkpoint

# Lower these as the decoder learns to wait less. "split": one token whose context is shared out over the threads.
MOST_PER_LAYER = {
    ("llama", "token"): 5,
    ("llama", "split"): 7,
    ("llama", "batch"): 9,
    ("llama", "prompt"): 10,
    ("glm4", "token"): 7,  # two more norms, behind the attention and behind the MLP
    ("glm4", "batch"): 11,
    ("glm4", "prompt"): 12,
}
MOST_BESIDES = 6  # the embedding, the head and its norm, the sampler, hidden states, the end of the run
FEW_LAYERS, MANY_LAYERS = 2, 5
CONTEXT_TOKENS = 1024


def rows_of(kind: str) -> list[Row]:
    blocks = list(range(CONTEXT_TOKENS // 16))
    match kind:
        case "token":
            return [Row(tokens=[3], blocks=blocks)]
        case "split":
            return [Row(tokens=[3], blocks=blocks, begin=CONTEXT_TOKENS - 1)]
        case "batch":
            return [Row(tokens=[index], blocks=[index]) for index in range(8)]
    return [Row(tokens=list(range(100)), blocks=blocks)]


def barriers_of_a_step(executor: NativeExecutor, kind: str) -> int:
    decoder = executor._open().decoder
    rows = rows_of(kind)
    batch = make_batch(rows, make_samples([sum(len(r.tokens) for r in rows) - 1]), logits=False)
    counts = []
    for _ in range(2):
        before = decoder.num_barriers
        assert executor.submit(batch).result().num_tokens.tolist() == [1]
        counts.append(decoder.num_barriers - before)
    assert counts[0] == counts[1] > 0
    return counts[0]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    root = tmp_path_factory.mktemp("models")
    shape = {"max_position_embeddings": CONTEXT_TOKENS, "num_key_value_heads": 1}
    return {
        (family, layers): save_checkpoint(
            make_reference(family, num_hidden_layers=layers, **shape), root / f"{family}-{layers}"
        )
        for family in ("llama", "glm4")
        for layers in (FEW_LAYERS, MANY_LAYERS)
    }


@pytest.mark.parametrize(("family", "kind"), MOST_PER_LAYER)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_wait_no_more_than_so_often_a_layer(
    directories: dict[tuple[str, int], Path], family: str, kind: str, num_threads: int
) -> None:
    formats = ModelFormats.for_quantisation(NumberFormat.INT8)
    counts = []
    for layers in (FEW_LAYERS, MANY_LAYERS):
        executor = load_checkpoint(directories[family, layers], make_plan(formats, num_threads=num_threads))
        counts.append(barriers_of_a_step(executor, kind))
        executor.close()
    few, many = counts
    per_layer, rest = divmod(many - few, MANY_LAYERS - FEW_LAYERS)
    assert rest == 0
    assert 0 < per_layer <= MOST_PER_LAYER[family, kind]
    assert 0 < few - FEW_LAYERS * per_layer <= MOST_BESIDES
