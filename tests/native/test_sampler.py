"""The native sampler against an independent numpy reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from openautoglm.executor.protocol import SampleBatch
from openautoglm.native import _core
from tests.executor.runner import make_samples

VOCAB = 1000


def draw(logits: np.ndarray, batch: SampleBatch) -> np.ndarray:
    tokens, num_tokens, *_ = _core.sample(np.ascontiguousarray(logits, dtype=np.float32), batch)
    assert (num_tokens == 1).all()
    return tokens[:, 0]


@dataclass(kw_only=True)
class Reference:
    """What sampling means, written plainly: float64, full sorts, one row."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    bias: dict[int, float] | None = None
    allowed: np.ndarray | None = None
    prompt: tuple[int, ...] = ()
    output: tuple[int, ...] = ()

    def edited(self, logits: np.ndarray) -> np.ndarray:
        values = logits.astype(np.float64)
        for token, bias in (self.bias or {}).items():
            values[token] += bias
        if self.allowed is not None:
            values[~self.allowed] = -np.inf
        for token in {*self.prompt, *self.output}:
            values[token] = values[token] / self.repetition if values[token] > 0 else values[token] * self.repetition
            count = self.output.count(token)
            values[token] -= self.frequency * count + self.presence * (count > 0)
        return values

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        scaled = self.edited(logits) / self.temperature
        weights = np.exp(scaled - scaled.max())
        order = np.lexsort((np.arange(len(weights)), -weights))
        keep = np.zeros(len(weights), dtype=bool)
        keep[order[: self.top_k or len(weights)]] = True
        weights = np.where(keep, weights, 0.0)
        if self.top_p < 1:
            mass = np.cumsum(weights[order]) / weights.sum()
            weights[order[np.searchsorted(mass, self.top_p - 1e-12) + 1 :]] = 0.0
        weights[weights < self.min_p * weights.max()] = 0.0
        return weights / weights.sum()

    def batch(self, num_draws: int, rng: np.random.Generator) -> SampleBatch:
        allowed = None
        if self.allowed is not None:
            bits = np.zeros(-(-len(self.allowed) // 32) * 32, dtype=np.uint8)
            bits[: len(self.allowed)] = self.allowed
            words = np.packbits(bits, bitorder="little").view(np.uint32)
            allowed = np.ascontiguousarray(np.tile(words, (num_draws, 1)))
        return make_samples(
            [0] * num_draws,
            temperatures=self.temperature,
            top_ks=self.top_k,
            top_ps=self.top_p,
            min_ps=self.min_p,
            repetition_penalties=self.repetition,
            frequency_penalties=self.frequency,
            presence_penalties=self.presence,
            seeds=rng.integers(0, 1 << 63, num_draws, dtype=np.uint64),
            choices=rng.integers(0, 16, num_draws),
            positions=rng.integers(0, 4096, num_draws),
            histories=[[*self.prompt, *self.output]] * num_draws,
            history_prompt_lengths=len(self.prompt),
            biases=[self.bias or {}] * num_draws,
            allowed_tokens=allowed,
        )


FILTERS = {
    "plain": Reference(),
    "cold": Reference(temperature=0.4),
    "hot": Reference(temperature=3.0),
    "top-k": Reference(top_k=7),
    "top-k large": Reference(top_k=400),
    "top-p": Reference(top_p=0.7),
    "top-p high": Reference(top_p=0.999, temperature=2.0),
    "top-p tiny": Reference(top_p=1e-6),
    "min-p": Reference(min_p=0.2),
    "all": Reference(temperature=1.3, top_k=40, top_p=0.9, min_p=0.05),
    "penalties": Reference(repetition=1.7, frequency=0.6, presence=0.4, prompt=(3, 5, 5, 8), output=(5, 9, 9, 9, 2)),
    "negative penalties": Reference(frequency=-1.0, presence=-0.5, output=(4, 4, 6)),
    "bias": Reference(bias={1: 5.0, 2: -np.inf, 7: 3.0}, temperature=0.8),
    "grammar": Reference(allowed=np.arange(VOCAB) % 97 == 5, top_p=0.95),
    "grammar, top-k": Reference(allowed=np.arange(VOCAB) % 89 == 3, top_k=6, temperature=1.4),
    "grammar, top-k beyond it": Reference(allowed=np.arange(VOCAB) % 211 == 3, top_k=400, min_p=0.02),
    "grammar, penalties": Reference(
        allowed=np.arange(VOCAB) % 3 == 0,
        repetition=1.7,
        frequency=-0.6,
        presence=0.4,
        prompt=(3, 5, 6),
        output=(9, 9, 4),
    ),
    "grammar, bias": Reference(allowed=np.arange(VOCAB) % 5 == 1, bias={1: 5.0, 6: -np.inf, 7: 90.0}, temperature=0.8),
}


@pytest.mark.parametrize("name", FILTERS)
def test_draws_follow_the_reference_distribution(name: str) -> None:
    reference, rng = FILTERS[name], np.random.default_rng(7)
    logits = rng.normal(0, 2, VOCAB).astype(np.float32)
    num_draws = 40_000
    expected = reference.probabilities(logits)
    counts = np.bincount(draw(logits[None], reference.batch(num_draws, rng)), minlength=VOCAB)
    assert (counts[expected == 0] == 0).all()
    common = expected * num_draws >= 10
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * num_draws
    likely = wanted > 0
    chi_square = ((observed - wanted)[likely] ** 2 / wanted[likely]).sum()
    freedom = max(1, likely.sum() - 1)
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom)  # about five standard deviations


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 1023, 4097, 151_552])
def test_filters_keep_exactly_the_reference_set_at_every_size(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = np.round(rng.normal(0, 1.5, vocab), 1).astype(np.float32)  # full of ties
    for reference in (Reference(top_k=3), Reference(top_k=50), Reference(top_p=0.3), Reference(top_k=9, top_p=0.8)):
        kept = np.flatnonzero(reference.probabilities(logits))
        num_draws = 3000 if vocab < 5000 else 150
        drawn = set(draw(logits[None], reference.batch(num_draws, rng)).tolist())
        assert drawn <= set(kept.tolist())
        if len(kept) * 50 <= num_draws:
            assert drawn == set(kept.tolist())


def test_greedy_takes_the_first_of_equal_values_and_obeys_edits() -> None:
    logits = np.array([[1, 5, 5, 2], [-0.0, 0.0, -1, -0.0], [1, 5, 5, 2]], dtype=np.float32)
    batch = make_samples([0, 1, 2], biases=[{}, {}, {1: -np.inf}])
    assert draw(logits, batch).tolist() == [1, 0, 2]


def test_greedy_penalties_match_the_reference() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        logits = rng.normal(0, 1, VOCAB).astype(np.float32)
        best = np.argsort(-logits)[:6].tolist()
        reference = Reference(
            temperature=0.0, repetition=1.5, frequency=0.3, presence=0.2, prompt=(best[1],), output=(best[0], best[0])
        )
        assert draw(logits[None], reference.batch(1, rng))[0] == reference.edited(logits).argmax()


def test_logprobs_are_of_the_raw_logits() -> None:
    rng = np.random.default_rng(5)
    logits = np.round(rng.normal(0, 3, (4, VOCAB)), 1).astype(np.float32)
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    batch = make_samples(
        [0, 1, 2, 3], num_logprobs=[5, 0, -1, 20], temperatures=[0.0, 2.0, 0.0, 1.0], top_ks=[0, 3, 0, 0],
        biases=[{7: 50.0}, {}, {}, {}],
    )  # fmt: skip
    tokens, _, logprobs, top_tokens, top_logprobs, *_ = _core.sample(logits, batch)
    assert tokens[0, 0] == 7
    for row in (0, 1, 3):
        assert logprobs[row] == pytest.approx(expected[row, tokens[row, 0]], abs=2e-5)
    assert logprobs[2] == 0
    for row, count in ((0, 5), (3, 20)):
        order = np.lexsort((np.arange(VOCAB), -logits[row]))[:count]
        assert top_tokens[row, :count].tolist() == order.tolist()
        np.testing.assert_allclose(top_logprobs[row, :count], expected[row, order], atol=2e-5)
    assert (top_tokens[0, 5:] == -1).all()
    assert (top_tokens[1:3] == -1).all()


def test_a_draw_depends_on_seed_choice_and_position_alone() -> None:
    rng = np.random.default_rng(11)
    logits = rng.normal(0, 1, (5, VOCAB)).astype(np.float32)
    keys = {"seeds": [1, 2, 1, 1, 1 << 63], "choices": [0, 0, 1, 0, 0], "positions": [0, 0, 0, 1, 0]}
    together = draw(logits, make_samples(range(5), temperatures=1.0, **keys))
    for row in range(5):
        alone = make_samples([row], temperatures=1.0, **{name: [values[row]] for name, values in keys.items()})
        assert draw(logits, alone)[0] == together[row]
    same = draw(np.tile(logits[:1], (5, 1)), make_samples(range(5), temperatures=30.0, **keys))
    assert len(set(same.tolist())) == 5


def test_random_numbers_are_philox() -> None:
    """With two equal tokens the draw shows the first random bit; numpy's Philox is another implementation."""
    seeds = np.arange(64, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    batch = make_samples([0] * 64, temperatures=1.0, seeds=seeds, choices=3, positions=range(64))
    drawn = draw(np.zeros((1, 2)), batch)
    rounds = [philox4x32([position, 3, 0, 0], [int(seed) & 0xFFFFFFFF, int(seed) >> 32])
              for position, seed in enumerate(seeds)]  # fmt: skip
    assert drawn.tolist() == [words[0] >> 31 for words in rounds]
    assert philox4x32([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # published test vector


def philox4x32(counter: list[int], key: list[int]) -> list[int]:
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        low = 0xFFFFFFFF
        counter = [second >> 32 ^ counter[1] ^ key[0], second & low, first >> 32 ^ counter[3] ^ key[1], first & low]
        key = [key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low]
    return counter


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_sound_distribution_get_no_token(bad: float, temperature: float) -> None:
    logits = np.random.default_rng(1).normal(0, 1, (3, VOCAB)).astype(np.float32)
    logits[1, 999] = bad
    tokens, num_tokens, _, top_tokens, _, _, _ = _core.sample(
        logits, make_samples([0, 1, 2], temperatures=temperature, num_logprobs=2, top_ps=0.9)
    )
    assert num_tokens.tolist() == [1, 0, 1]
    assert tokens[1, 0] == -1
    assert (top_tokens[1] == -1).all()


def test_banning_everything_gets_no_token() -> None:
    logits = np.zeros((1, 64), dtype=np.float32)
    none = np.zeros((1, 2), dtype=np.uint32)
    _, num_tokens, *_ = _core.sample(logits, make_samples([0], temperatures=1.0, allowed_tokens=none))
    assert num_tokens.tolist() == [0]


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-6])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    logits = np.random.default_rng(2).normal(0, 1, (1, VOCAB)).astype(np.float32)
    batch = make_samples([0] * 50, temperatures=temperature, seeds=range(50))
    assert (draw(logits, batch) == logits.argmax()).all()


def test_the_scratch_is_clean_between_rows() -> None:
    """Counts of one row's penalties must not reach the next row."""
    logits = np.tile(np.linspace(0, 1, VOCAB, dtype=np.float32), (2, 1))
    history = [[VOCAB - 1] * 5, [VOCAB - 2]]
    batch = make_samples([0, 1], frequency_penalties=1.0, histories=history)
    assert draw(logits, batch).tolist() == [VOCAB - 2, VOCAB - 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"temperatures": -1.0}, "temperature"),
        ({"temperatures": np.nan}, "temperature"),
        ({"top_ps": 0.0}, "top_p"),
        ({"min_ps": 2.0}, "min_p"),
        ({"repetition_penalties": 0.0}, "repetition"),
        ({"top_ks": -1}, "top_k"),
        ({"histories": [[64]]}, "vocabulary"),
        ({"biases": [{-1: 0.0}]}, "vocabulary"),
        ({"allowed_tokens": np.zeros((1, 3), dtype=np.uint32)}, "allowed_tokens"),
    ],
)
def test_bad_values_are_refused(columns: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _core.sample(np.zeros((1, 64), dtype=np.float32), make_samples([0], **columns))


def test_a_token_index_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="token index"):
        _core.sample(np.zeros((1, 64), dtype=np.float32), make_samples([1]))
