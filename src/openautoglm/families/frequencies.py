"""Inverse rotary frequencies, rounded to fp32 at every step as transformers' modeling_rope_utils rounds them.

A frequency that is off in its seventh digit turns angles at far positions, so the order and the precision of every
operation is that of the torch code: exponents, powers, quotients and blends each rounded to fp32.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

_FLOAT = struct.Struct("<f")
_MIN_RAMP = 0.001


def round_to_float32(value: float) -> float:
    """Return the nearest fp32 value."""
    return float(_FLOAT.unpack(_FLOAT.pack(value))[0])


_f32 = round_to_float32


def default_frequencies(theta: float, dimensions: int) -> tuple[float, ...]:
    """Return theta^(-2i/dimensions) for i in [0, dimensions/2)."""
    return tuple(_f32(1.0 / power) for power in _powers(theta, dimensions))


def linear_frequencies(theta: float, dimensions: int, factor: float) -> tuple[float, ...]:
    """Return the default frequencies divided by `factor`: positions are interpolated."""
    return tuple(_f32(frequency / _f32(factor)) for frequency in default_frequencies(theta, dimensions))


def long_frequencies(theta: float, factors: Sequence[float]) -> tuple[float, ...]:
    """Return LongRoPE's frequencies: each default one divided by its own factor."""
    powers = _powers(theta, 2 * len(factors))
    return tuple(_f32(1.0 / _f32(_f32(factor) * power)) for factor, power in zip(factors, powers, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3's scaling: long waves divided by `factor`, short ones kept, those between blended."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int

    def frequencies(self, theta: float, dimensions: int) -> tuple[float, ...]:
        """Return the scaled frequencies."""
        return tuple(self._scaled(frequency) for frequency in default_frequencies(theta, dimensions))

    def _scaled(self, frequency: float) -> float:
        longest = _f32(self.original_positions / self.low_frequency_factor)
        shortest = _f32(self.original_positions / self.high_frequency_factor)
        # torch divides a number by a tensor as reciprocal times number
        wavelength = _f32(_f32(1.0 / frequency) * _f32(2 * math.pi))
        divided = _f32(frequency / _f32(self.factor))
        if wavelength > longest:
            return divided
        if wavelength < shortest:
            return frequency
        span = _f32(self.high_frequency_factor - self.low_frequency_factor)
        waves = _f32(_f32(1.0 / wavelength) * _f32(self.original_positions))
        smooth = _f32(_f32(waves - _f32(self.low_frequency_factor)) / span)
        blended = _f32(_f32(_f32(1.0 - smooth) * frequency) / _f32(self.factor))
        return _f32(blended + _f32(smooth * frequency))


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnScaling:
    """YaRN: dimensions that turn often keep their frequency, slow ones are interpolated, a ramp lies between."""

    factor: float
    original_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def frequencies(self, theta: float, dimensions: int) -> tuple[float, ...]:
        """Return the scaled frequencies."""
        low = self._correction_dimension(self.beta_fast, theta, dimensions)
        high = self._correction_dimension(self.beta_slow, theta, dimensions)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dimensions - 1)
        if abs(high - low) < _MIN_RAMP:
            high = low + _MIN_RAMP  # no division by zero
        return tuple(self._blend(index, power, low, high) for index, power in enumerate(_powers(theta, dimensions)))

    def _blend(self, index: int, power: float, low: float, high: float) -> float:
        ramp = min(max(_f32(_f32(index - _f32(low)) / _f32(high - low)), 0.0), 1.0)
        kept = _f32(1.0 - ramp)
        interpolated = _f32(1.0 / _f32(_f32(self.factor) * power))
        return _f32(_f32(interpolated * _f32(1.0 - kept)) + _f32(_f32(1.0 / power) * kept))

    def _correction_dimension(self, num_rotations: float, theta: float, dimensions: int) -> float:
        turns = math.log(self.original_positions / (num_rotations * 2 * math.pi))
        return dimensions * turns / (2 * math.log(theta))


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """Return what multiplies cosine and sine under YaRN where the file does not say."""

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)


def long_attention_factor(factor: float, original_positions: int) -> float:
    """Return what multiplies cosine and sine under LongRoPE where the file does not say."""
    return math.sqrt(1 + math.log(factor) / math.log(original_positions)) if factor > 1 else 1.0


def _powers(theta: float, dimensions: int) -> tuple[float, ...]:
    base = _f32(theta)
    return tuple(_f32(base ** _f32(index / dimensions)) for index in range(0, dimensions, 2))
