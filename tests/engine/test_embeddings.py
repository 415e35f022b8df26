"""Embeddings against transformers' hidden states: the same vectors, and the same bytes whatever else runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from openautoglm.engine.client import GenerationEvent, GenerationRequest, Pooling
from openautoglm.engine.engine import Engine
from openautoglm.errors import InvalidRequestError, OverloadedError
from openautoglm.spec.formats import ModelFormats, NumberFormat
from openautoglm.spec.sampling import SamplingParams
from tests.engine.history_executor import HistoryExecutor, WordTokenizer, make_engine
from tests.executor.tiny_models import load_checkpoint, make_plan, make_reference, save_checkpoint

F32 = ModelFormats.for_quantisation(NumberFormat.F32)
ONE = SamplingParams(max_tokens=1, temperature=0.0)


@dataclass
class Model:
    reference: PreTrainedModel
    directory: Path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    reference = make_reference("qwen3")
    return Model(reference, save_checkpoint(reference, tmp_path_factory.mktemp("model") / "tiny"))


def make(name: str, tokens: list[int], pooling: Pooling | None = Pooling.MEAN, **fields: Any) -> GenerationRequest:
    return GenerationRequest(
        request_id=name, prompt_tokens=tuple(tokens), sampling=fields.pop("sampling", ONE), pooling=pooling, **fields
    )


def tokens_of(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(3, 90, count).tolist()


def run(
    model: Model,
    requests: list[GenerationRequest],
    *,
    step_tokens: int = 128,
    preempt_after: int | None = None,
    forget: bool = False,
    **options: Any,
) -> tuple[dict[str, GenerationEvent], Engine]:
    """Return the last event of each request, and the engine, closed."""
    plan = make_plan(F32, max_step_tokens=step_tokens, num_threads=1)
    executor = load_checkpoint(model.directory, plan)
    engine = Engine(executor, WordTokenizer(), eos_token_ids=(2,), context_tokens=256, **options)
    try:
        for request in requests:
            engine.add(request)
        ended: dict[str, GenerationEvent] = {}
        num_steps = 0
        while engine.has_work:
            if num_steps == preempt_after:
                engine.scheduler.preempt_last()
                if forget:
                    engine.pool.drop_cached()
            num_steps += 1
            for event in engine.step():
                if event.finish_reason is not None:
                    ended[event.request_id] = event
        engine.integrity_check()
        assert engine.charged_bytes == 0
        return ended, engine
    finally:
        engine.close()


def vector(event: GenerationEvent) -> np.ndarray:
    return np.frombuffer(event.embedding, dtype="<f4")


def expected(model: Model, tokens: list[int], pooling: Pooling) -> np.ndarray:
    with torch.no_grad():
        states = model.reference.model(torch.tensor([tokens])).last_hidden_state[0].double().numpy()
    pooled = states[-1] if pooling is Pooling.LAST else states.mean(axis=0)
    return pooled / np.linalg.norm(pooled)


@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("count", [1, 16, 45])
def test_the_vector_is_the_references(model: Model, pooling: Pooling, count: int) -> None:
    tokens = tokens_of(count, count)
    ended, _ = run(model, [make("a", tokens, pooling)])
    found = vector(ended["a"])
    assert found.dtype == np.float32
    assert np.abs(found - expected(model, tokens, pooling)).max() < 2e-5
    assert abs(np.linalg.norm(found.astype(np.float64)) - 1) < 1e-6
    assert (ended["a"].prompt_tokens, ended["a"].completion_tokens) == (count, 1)


@pytest.mark.parametrize("pooling", Pooling)
def test_the_same_bytes_whatever_the_chunks_and_the_company(model: Model, pooling: Pooling) -> None:
    tokens = tokens_of(5, 70)
    alone, _ = run(model, [make("a", tokens, pooling)])
    company = [
        make("b", tokens_of(6, 40), None, sampling=SamplingParams(max_tokens=30, temperature=0.0)),
        make("c", tokens, Pooling.MEAN),
        make("a", tokens, pooling),
        make("d", tokens[:20], Pooling.LAST),
    ]
    for step_tokens in (16, 23):
        ended, _ = run(model, company, step_tokens=step_tokens)
        assert ended["a"].embedding == alone["a"].embedding
        assert ended["b"].embedding == b""
        assert np.abs(vector(ended["d"]) - expected(model, tokens[:20], Pooling.LAST)).max() < 2e-5


@pytest.mark.parametrize("forget", [False, True])
@pytest.mark.parametrize("pooling", Pooling)
def test_the_same_bytes_after_preemption(model: Model, pooling: Pooling, forget: bool) -> None:
    tokens = tokens_of(7, 60)
    alone, _ = run(model, [make("a", tokens, pooling)])
    # Blocks of the first chunks are found again, or computed again: either way no state counts twice.
    ended, engine = run(model, [make("a", tokens, pooling)], step_tokens=20, preempt_after=2, forget=forget)
    assert engine.scheduler.num_preemptions == 1
    assert (engine.scheduler.num_recomputed_tokens > 30) == forget
    assert ended["a"].embedding == alone["a"].embedding


def test_only_the_last_state_may_come_behind_a_cached_prefix(model: Model) -> None:
    tokens = tokens_of(7, 60)
    last, _ = run(model, [make("x", tokens, Pooling.LAST), make("y", tokens, Pooling.LAST)], max_running=1)
    assert last["y"].cached_tokens == 48
    assert last["y"].embedding == last["x"].embedding
    mean, _ = run(model, [make("x", tokens), make("y", tokens)], max_running=1)
    assert mean["y"].cached_tokens == 0
    assert mean["y"].embedding == mean["x"].embedding


def test_states_are_charged_once_for_all_and_given_back(model: Model) -> None:
    hidden = model.reference.config.hidden_size
    plan = make_plan(F32, max_step_tokens=32, num_threads=1)
    space = 300_000
    engine = Engine(
        load_checkpoint(model.directory, plan), WordTokenizer(), eos_token_ids=(2,), context_tokens=256,
        request_space_bytes=space,
    )  # fmt: skip
    try:
        engine.add(make("a", tokens_of(1, 20)))
        first = engine.charged_bytes
        engine.add(make("b", tokens_of(2, 20)))
        second = engine.charged_bytes - first
        # The second one adds what a request takes, and the states of the 12 tokens that a step has beyond the first's.
        assert first - second == (20 - 12) * hidden * 4
        fill = (make(f"c{index}", tokens_of(3, 20)) for index in range(100))
        with pytest.raises(OverloadedError):
            list(map(engine.add, fill))
        while engine.has_work:
            engine.step()
        assert engine.charged_bytes == 0
        engine.add(make("z", tokens_of(1, 20)))
        engine.abort("z")
        engine.step()
        assert engine.charged_bytes == 0
    finally:
        engine.close()


def test_what_cannot_be_is_refused() -> None:
    engine = make_engine(HistoryExecutor(num_blocks=8))
    with pytest.raises(InvalidRequestError, match="gives no hidden states"):
        engine.add(make("a", [5]))
