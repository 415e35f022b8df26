"""A strict reader of config.json: every value is checked where it is read, every key must be understood."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Final, NoReturn, cast

from openautoglm.errors import ModelError, UnknownConfigKeyError
from openautoglm.families.keys import HARMLESS_KEYS, NEUTRAL_KEYS

MAX_SIZE: Final = 10_000_000
MAX_LAYERS: Final = 4096
MAX_HEADS: Final = 65_536
MAX_HEAD_DIM: Final = 16_384
MAX_POSITIONS: Final = 1 << 31
MAX_EXPERTS: Final = 65_536

_MAX_SHOWN = 60


class ConfigReader:
    """Typed access to the keys of one JSON object; remembers which were read.

    Every accessor raises `ModelError` that names the key when its value has the wrong type or is out of range.
    `finish` raises `UnknownConfigKeyError` for keys that nothing read and that are not known to be harmless.
    """

    def __init__(self, values: Mapping[str, object], *, path: str = "") -> None:
        self._values = values
        self._path = path
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """Return the key's full name, such as "rope_parameters.factor"."""
        return f"{self._path}{name}"

    def fail(self, name: str, expected: str) -> NoReturn:
        """Raise `ModelError`: the value of `name` is not what was `expected`."""
        if name not in self._values:
            raise ModelError(f"config key {self.label(name)!r} is missing: it must be {expected}")
        raise ModelError(f"config key {self.label(name)!r} must be {expected}, got {_show(self._values[name])}")

    def has(self, name: str) -> bool:
        """Whether the key is there with a value other than null; the key counts as understood."""
        self._known.add(name)
        return self._values.get(name) is not None

    def peek(self, name: str) -> object:
        """Return the unchecked value of a key, None where it is absent; the key does not count as understood."""
        return self._values.get(name)

    def is_null(self, name: str) -> bool:
        """Whether the key is there and null."""
        return name in self._values and self._values[name] is None

    def integer(self, name: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """Return an integer in [low, high]; without a default the key must be there."""
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.fail(name, f"an integer in [{low}, {high}]")
        return value

    def optional_integer(
        self, name: str, default: int | None = None, *, low: int = 1, high: int = MAX_SIZE
    ) -> int | None:
        """Return an integer in [low, high], None where the file says null, the default where it says nothing."""
        self._known.add(name)
        if name not in self._values:
            return default
        return self.integer(name, low=low, high=high) if self._values[name] is not None else None

    def number(self, name: str, default: float | None = None, *, low: float, high: float) -> float:
        """Return a finite number in [low, high]; without a default the key must be there."""
        value = self._get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            self.fail(name, f"a number in [{low:g}, {high:g}]")
        return float(value)

    def optional_number(self, name: str, *, low: float, high: float) -> float | None:
        """Return a finite number in [low, high], or None where it is absent or null."""
        return self.number(name, low=low, high=high) if self.has(name) else None

    def numbers(self, name: str, *, length: int, low: float, high: float) -> tuple[float, ...]:
        """Return a list of exactly `length` numbers in [low, high]."""
        values = self._get(name, None)
        if not isinstance(values, list) or len(values) != length:
            self.fail(name, f"a list of {length} numbers")
        items = cast("list[object]", values)
        good = [float(item) for item in items if isinstance(item, int | float) and not isinstance(item, bool)]
        if len(good) != length or not all(low <= item <= high for item in good):
            self.fail(name, f"a list of {length} numbers in [{low:g}, {high:g}]")
        return tuple(good)

    def flag(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.fail(name, "true or false")
        return value

    def choice(self, name: str, default: str, choices: Iterable[str]) -> str:
        """Return one of the given words."""
        value = self._get(name, default)
        words = sorted(choices)
        if not isinstance(value, str) or value not in words:
            self.fail(name, f"one of {', '.join(words)}")
        return value

    def words(self, name: str, *, length: int, choices: Iterable[str]) -> tuple[str, ...] | None:
        """Return a list of `length` words out of `choices`, or None where it is absent or null."""
        if not self.has(name):
            return None
        values = self._values[name]
        allowed = frozenset(choices)
        good = isinstance(values, list) and len(values) == length
        if not good or not all(isinstance(item, str) and item in allowed for item in cast("list[object]", values)):
            self.fail(name, f"a list of {length} words out of {', '.join(sorted(allowed))}")
        return tuple(cast("list[str]", values))

    def pattern(self, name: str, *, length: int, letters: str) -> str | None:
        """Return a word of `length` letters out of `letters`, or None where it is absent or null."""
        if not self.has(name):
            return None
        value = self._values[name]
        if not isinstance(value, str) or len(value) != length or not set(value) <= set(letters):
            self.fail(name, f"a word of {length} letters out of {letters}")
        return value

    def indices(self, name: str, *, end: int) -> frozenset[int]:
        """Return a list of integers in [0, end) as a set; empty where it is absent or null."""
        if not self.has(name):
            return frozenset()
        values = self._values[name]
        if not isinstance(values, list):
            self.fail(name, f"a list of integers in [0, {end})")
        items = [item for item in values if isinstance(item, int) and not isinstance(item, bool) and 0 <= item < end]
        if len(items) != len(values):
            self.fail(name, f"a list of integers in [0, {end})")
        return frozenset(items)

    def section(self, name: str) -> ConfigReader | None:
        """Return a reader of a nested object, or None where it is absent or null."""
        if not self.has(name):
            return None
        values = self._values[name]
        if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
            self.fail(name, "an object")
        return ConfigReader(cast("Mapping[str, object]", values), path=f"{self._path}{name}.")

    def required_section(self, name: str) -> ConfigReader:
        """Return a reader of a nested object that must be there."""
        section = self.section(name)
        if section is None:
            self.fail(name, "an object")
        return section

    def overlaid(self, other: ConfigReader) -> ConfigReader:
        """Return a reader of this object's keys with those of `other` in front."""
        return ConfigReader({**self._values, **other._values}, path=other._path)

    @property
    def empty(self) -> bool:
        """Whether the object has no keys."""
        return not self._values

    def neutral(self, name: str, *values: object) -> None:
        """Understand a key only at the given values; anything else is a feature that no family describes."""
        self._known.add(name)
        if name not in self._values:
            return
        value = self._values[name]
        if not any(type(value) is type(neutral) and value == neutral for neutral in values):
            self.fail(name, f"{' or '.join(repr(neutral) for neutral in values)} (anything else is not supported)")

    def accept(self, names: Iterable[str]) -> None:
        """Understand keys that change nothing for this family."""
        self._known.update(names)

    def finish(self) -> None:
        """Raise `UnknownConfigKeyError` for keys that nothing read and that could change numerics."""
        for name, neutral in NEUTRAL_KEYS.items():
            self.neutral(name, *neutral)
        unknown = sorted(set(self._values) - self._known - HARMLESS_KEYS)
        if unknown:
            labels = ", ".join(repr(self.label(name)[:_MAX_SHOWN]) for name in unknown[:8])
            raise UnknownConfigKeyError(
                f"config key {labels} is not understood and could change results: "
                "use a version that knows it, or remove it if it is known to change nothing"
            )

    def _get(self, name: str, default: object) -> object:
        self._known.add(name)
        if name in self._values:
            return self._values[name]
        if default is None:
            raise ModelError(f"config key {self.label(name)!r} is missing: a model of this type needs it")
        return default


def _show(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN:
        return "a huge integer"
    return reprlib.repr(value)  # bounded in length and depth


def require_multiple(reader: ConfigReader, name: str, *, whole: int, part: int, of: str) -> None:
    """Raise `ModelError` naming `name` unless `part` divides `whole`, the value of `of`."""
    if whole % part:
        raise ModelError(f"config key {reader.label(name)!r} ({part}) must divide {of} ({whole})")
