"""Bytes and durations as people write them."""

from __future__ import annotations

import re

from openautoglm.errors import ConfigError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_FACTORS = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "kb": 1000,
    "m": MIB, "mib": MIB, "mb": 1000**2,
    "g": GIB, "gib": GIB, "gb": 1000**3,
    "t": GIB << 10, "tib": GIB << 10, "tb": 1000**4,
}  # fmt: skip
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0, "m": 60.0, "h": 3600.0}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Parse "4GiB", "512 MiB", "4g" (binary) or "4GB" (decimal) into bytes; raise `ConfigError` otherwise."""
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match.group(2).lower()) if match else None
    if match is None or factor is None:
        raise ConfigError(f"{text!r} is not a size: write a number and a unit, such as 4GiB, 512MiB or 8GB")
    return int(float(match.group(1)) * factor)


def parse_bytes_per_minute(text: str) -> int:
    """Parse "10MiB/min" into bytes per minute; raise `ConfigError` otherwise, and for less than one byte."""
    size, slash, unit = text.partition("/")
    if slash and unit.strip().lower() in ("min", "minute"):
        try:
            if (num_bytes := parse_bytes(size)) > 0:
                return num_bytes
        except ConfigError:
            pass  # said better below: the whole of it was wrong
    raise ConfigError(f"{text!r} is not a rate: write a size above zero per minute, such as 10MiB/min")


def parse_seconds(text: str) -> float:
    """Parse "250ms", "1.5s", "2min" or plain seconds into seconds above zero; raise `ConfigError` otherwise."""
    match = _SIZE.fullmatch(text)
    factor = _SECONDS.get(match.group(2).lower()) if match else None
    seconds = 0.0 if match is None or factor is None else float(match.group(1)) * factor
    if seconds <= 0:
        raise ConfigError(f"{text!r} is no time: write a number above zero and a unit, such as 250ms, 2s or 1min")
    return seconds


def format_bytes(num_bytes: int) -> str:
    """Format bytes with a binary unit and three significant figures: 1536 -> '1.50 KiB'."""
    sign, rest = ("-", -num_bytes) if num_bytes < 0 else ("", num_bytes)
    if rest < KIB:
        return f"{sign}{rest} B"
    value, unit = float(rest), "B"
    for candidate in ("KiB", "MiB", "GiB", "TiB"):
        value, unit = value / 1024, candidate
        if value < 999.5:
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{sign}{value:.{digits}f} {unit}"


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple
