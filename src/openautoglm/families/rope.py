"""Rotary settings of config.json, in the old spelling and in that of transformers 5.

Old: `rope_theta`, `rope_scaling` {type|rope_type, factor, …} and `partial_rotary_factor` at the top level.
New: one object `rope_parameters` {rope_type, rope_theta, partial_rotary_factor, factor, …}.
As in transformers, a `rope_scaling` that is not empty replaces `rope_parameters`, what stands inside the object wins
over the top level, and only a top-level `original_max_position_embeddings` wins over the one inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from openautoglm.errors import ModelError
from openautoglm.families.config_reader import MAX_POSITIONS, ConfigReader
from openautoglm.families.frequencies import (
    Llama3Scaling,
    YarnScaling,
    default_frequencies,
    linear_frequencies,
    long_attention_factor,
    long_frequencies,
    yarn_attention_factor,
)
from openautoglm.spec.arch import RotarySpec

DEFAULT_THETA = 10_000.0
TEXT_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")

_DEFAULT_MROPE_SECTIONS = (8.0, 12.0, 12.0)
_MIN_THETA = 1.001
_MAX_THETA = 1e15
_MIN_FACTOR = 1e-6
_MAX_FACTOR = 1e6
_ALL_NUMBERS = (
    "attention_factor", "beta_fast", "beta_slow", "factor", "high_freq_factor", "low_freq_factor", "mscale",
    "mscale_all_dim",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RotaryContext:
    """What a family fixes about its rotary embedding.

    `partial` is the share of a head that turns where the file does not say; None means that the family turns whole
    heads and accepts no other share. `kinds` are the rope types that it can have. `mrope` allows M-RoPE sections.
    """

    head_dim: int
    max_positions: int
    interleaved: bool = False
    partial: float | None = None
    theta: float = DEFAULT_THETA
    kinds: tuple[str, ...] = TEXT_KINDS
    aliases: dict[str, str] = field(default_factory=dict)
    mrope: bool = False


def read_rotary(reader: ConfigReader, context: RotaryContext) -> RotarySpec:
    """Read the rotary settings of a model whose layers share them; raise `ModelError` naming a bad key."""
    theta = _theta(reader, context.theta)
    partial = _share(reader, context.partial)
    original = reader.optional_integer("original_max_position_embeddings", low=2, high=MAX_POSITIONS)
    return rotary_from(rope_section(reader), context, theta=theta, partial=partial, original=original)


def rope_section(reader: ConfigReader) -> ConfigReader:
    """Return the object that holds the rotary settings: `rope_scaling` unless empty, else `rope_parameters`."""
    scaling = reader.section("rope_scaling")
    parameters = reader.section("rope_parameters")
    if scaling is not None and not scaling.empty:
        return scaling
    return parameters if parameters is not None else ConfigReader({}, path="rope_parameters.")


def stretched_positions(reader: ConfigReader, max_positions: int) -> int:
    """Return the positions that a model is meant for: YaRN reaches `factor` times the original ones.

    Files that switch YaRN on by hand, as Qwen's cards tell, keep the old `max_position_embeddings`.
    """
    section = rope_section(reader)
    if (section.peek("rope_type") or section.peek("type")) != "yarn":
        return max_positions
    factor = section.optional_number("factor", low=_MIN_FACTOR, high=_MAX_FACTOR)
    if factor is None:
        return max_positions
    original = reader.optional_integer("original_max_position_embeddings", low=2, high=MAX_POSITIONS)
    if original is None:
        original = section.integer("original_max_position_embeddings", max_positions, low=2, high=MAX_POSITIONS)
    return max(max_positions, min(int(original * factor), MAX_POSITIONS))


def rotary_from(
    section: ConfigReader, context: RotaryContext, *, theta: float, partial: float | None, original: int | None
) -> RotarySpec:
    """Build the rotary embedding from one settings object and the defaults that stood outside it."""
    words = (*context.kinds, *context.aliases)
    legacy = section.choice("type", "default", words) if section.has("type") else "default"
    kind = section.choice("rope_type", legacy, words)
    kind = context.aliases.get(kind, kind)
    theta = _theta(section, theta)
    share = _share(section, partial)
    if context.partial is None and share not in (None, 1.0):
        raise ModelError(f"config key 'partial_rotary_factor' must be 1 for a model of this type, got {share:g}")
    dimensions = int(context.head_dim * (1.0 if share is None else share))
    if dimensions < 2 or dimensions % 2:
        raise ModelError(
            f"config key 'partial_rotary_factor' makes {dimensions} of {context.head_dim} dimensions of a head turn: "
            "rotary embedding needs an even number, at least 2"
        )
    settings = _Settings(section, kind, theta, dimensions, context.max_positions, original)
    frequencies, attention_factor = settings.compute()
    sections = _mrope_sections(section, dimensions) if context.mrope else None
    section.finish()
    return RotarySpec(
        dimensions=dimensions,
        interleaved=context.interleaved,
        inverse_frequencies=frequencies,
        attention_factor=attention_factor,
        kind=kind,
        mrope_sections=sections,
    )


@dataclass(frozen=True, slots=True)
class _Settings:
    """One rope type with its numbers, on the way to frequencies."""

    section: ConfigReader
    kind: str
    theta: float
    dimensions: int
    max_positions: int
    original: int | None

    def compute(self) -> tuple[tuple[float, ...], float]:
        """Return the frequencies and the attention factor."""
        self._check_unused()
        match self.kind:
            case "linear":
                factor = self._positive("factor")
                return linear_frequencies(self.theta, self.dimensions, factor), 1.0
            case "llama3":
                return self._llama3(), 1.0
            case "yarn":
                return self._yarn()
            case "longrope":
                return self._longrope()
            case "dynamic":
                self._positive("factor")  # the short form: nothing is scaled up to max_positions
        return default_frequencies(self.theta, self.dimensions), 1.0

    def _check_unused(self) -> None:
        """Type-check what this rope type leaves unread; transformers ignores it too."""
        for name in _ALL_NUMBERS:
            self.section.optional_number(name, low=0.0, high=_MAX_FACTOR)
        self.section.optional_integer("original_max_position_embeddings", low=2, high=MAX_POSITIONS)
        if self.kind != "longrope":
            self.section.accept(("short_factor", "long_factor"))
        if self.section.has("truncate"):
            self.section.flag("truncate", True)

    def _positive(self, name: str) -> float:
        return self.section.number(name, low=_MIN_FACTOR, high=_MAX_FACTOR)

    def _original_positions(self) -> int:
        if self.original is not None:
            return self.original
        return self.section.integer("original_max_position_embeddings", self.max_positions, low=2, high=MAX_POSITIONS)

    def _llama3(self) -> tuple[float, ...]:
        low, high = self._positive("low_freq_factor"), self._positive("high_freq_factor")
        if abs(high - low) < _MIN_FACTOR:
            self.section.fail("high_freq_factor", f"different from low_freq_factor ({low:g})")
        scaling = Llama3Scaling(
            factor=self._positive("factor"),
            low_frequency_factor=low,
            high_frequency_factor=high,
            original_positions=self._original_positions(),
        )
        return scaling.frequencies(self.theta, self.dimensions)

    def _yarn(self) -> tuple[tuple[float, ...], float]:
        original = self._original_positions()
        factor = self._factor(original)
        scaling = YarnScaling(
            factor=factor,
            original_positions=original,
            beta_fast=self._or_default("beta_fast", 32.0),
            beta_slow=self._or_default("beta_slow", 1.0),
            truncate=self.section.flag("truncate", True),
        )
        mscale = self.section.optional_number("mscale", low=0.0, high=_MAX_FACTOR)
        mscale_all_dim = self.section.optional_number("mscale_all_dim", low=0.0, high=_MAX_FACTOR)
        attention = self._attention_factor()
        if attention is None:
            attention = yarn_attention_factor(factor, mscale, mscale_all_dim)
        return scaling.frequencies(self.theta, self.dimensions), attention

    def _longrope(self) -> tuple[tuple[float, ...], float]:
        original = self._original_positions()
        length = self.dimensions // 2
        short = self.section.numbers("short_factor", length=length, low=_MIN_FACTOR, high=_MAX_FACTOR)
        self.section.numbers("long_factor", length=length, low=_MIN_FACTOR, high=_MAX_FACTOR)
        attention = self._attention_factor()
        if attention is None:
            factor = self._positive("factor") if self.section.has("factor") else self.max_positions / original
            attention = long_attention_factor(factor, original)
        return long_frequencies(self.theta, short), attention

    def _factor(self, original: int) -> float:
        if self.section.has("factor"):
            return self._positive("factor")
        if not self.section.is_null("factor"):
            self.section.fail("factor", "a number above 0")
        return self.max_positions / original

    def _attention_factor(self) -> float | None:
        return self.section.optional_number("attention_factor", low=_MIN_FACTOR, high=_MAX_FACTOR)

    def _or_default(self, name: str, default: float) -> float:
        """Return a number; 0 and null mean the default, as in transformers."""
        if not self.section.optional_number(name, low=0.0, high=_MAX_FACTOR):
            return default
        return self._positive(name)


def _theta(reader: ConfigReader, default: float) -> float:
    return reader.number("rope_theta", default, low=_MIN_THETA, high=_MAX_THETA)


def _share(reader: ConfigReader, default: float | None) -> float | None:
    return reader.number("partial_rotary_factor", default, low=_MIN_FACTOR, high=1.0) if _has_share(reader) else default


def _has_share(reader: ConfigReader) -> bool:
    return reader.has("partial_rotary_factor") or reader.is_null("partial_rotary_factor")


def _mrope_sections(section: ConfigReader, dimensions: int) -> tuple[int, ...]:
    found = section.has("mrope_section")
    high = float(dimensions)
    widths = section.numbers("mrope_section", length=3, low=0.0, high=high) if found else _DEFAULT_MROPE_SECTIONS
    if sum(widths) != dimensions // 2 or any(width != int(width) for width in widths):
        section.fail("mrope_section", f"three whole numbers whose sum is {dimensions // 2}")
    return tuple(int(width) for width in widths)
