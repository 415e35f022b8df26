"""The byte alphabet of byte-level BPE: every byte has a printable character that stands for it (source: GPT-2)."""

from __future__ import annotations


def _alphabet() -> dict[str, int]:
    """Map characters to bytes: printable Latin-1 stands for itself, the other bytes follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _alphabet()


def token_bytes(token: str) -> bytes:
    """Return the bytes that a token spells; one with a character outside the alphabet is itself, in UTF-8."""
    try:
        return bytes([_BYTE_OF_CHARACTER[character] for character in token])
    except KeyError:
        return token.encode("utf-8")
