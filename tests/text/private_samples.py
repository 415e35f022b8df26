"""Texts with private data at known places, and texts with what only looks like it. Shares no code with the detector.

Identity numbers are made by the recursive form of ISO 7064 MOD 11-2, cards by Luhn's table of doubled digits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

_SURNAMES, _GIVEN = "王李张刘陈杨赵黄周吴", "伟芳娜敏静强磊军洋勇"
_AREAS = [
    "110101", "120103", "130102", "210203", "310104", "320102", "330106", "350203", "370202", "420106", "440305",
    "510104", "610113", "650102", "810000",
]  # fmt: skip
_DOUBLED = {"0": 0, "1": 2, "2": 4, "3": 6, "4": 8, "5": 1, "6": 3, "7": 5, "8": 7, "9": 9}
# Issuer, and how long its numbers are.
_ISSUERS = [
    ("622202", 19), ("621700", 19), ("622848", 19), ("625912", 16), ("6225", 16), ("4392", 16), ("5187", 16),
    ("356827", 16), ("2221", 16), ("955880", 19), ("9558", 18), ("6013", 17), ("370248", 16),
]  # fmt: skip
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WIDE = {ord(character): ord(character) + 0xFEE0 for character in "0123456789.-@:X"} | {ord(" "): 0x3000}
_FRAMES = [
    "{}", "我的信息是{}，请查收。", "联系方式：{}谢谢", "请把{}发给{}。", "see {} for it", "Call or write: {}.", "({})",
    "“{}”", "编号{}号", "{}\n", "值={};", "id:{},next", "用户{}已登记，余额 3.50 元。",
]  # fmt: skip


@dataclass
class Sample:
    """A text, and what in it is private: (kind, begin, end)."""

    text: str
    private: list[tuple[str, int, int]] = field(default_factory=list)


def id_number(rng: random.Random) -> str:
    day = f"{rng.randint(1930, 2020)}{rng.randint(1, 12):02}{rng.randint(1, 28):02}"
    body = rng.choice(_AREAS) + day + f"{rng.randint(0, 999):03}"
    product = 10
    remainder = 0
    for digit in body:
        remainder = (remainder + int(digit)) * 2 % 11
    check = (12 - remainder) % 11
    assert 0 <= check <= product
    return body + ("X" if check == 10 else str(check))


def luhn_digit(body: str) -> int:
    total = sum(_DOUBLED[d] if place % 2 == 0 else int(d) for place, d in enumerate(reversed(body)))
    return -total % 10


def card(rng: random.Random) -> str:
    issuer, length = rng.choice(_ISSUERS)
    body = issuer + "".join(rng.choice("0123456789") for _ in range(length - len(issuer) - 1))
    return body + str(luhn_digit(body))


def mobile(rng: random.Random) -> str:
    return "1" + rng.choice("3456789") + "".join(rng.choice("0123456789") for _ in range(9))


def email(rng: random.Random) -> str:
    name = "".join(rng.choice(_LETTERS) for _ in range(rng.randint(1, 12)))
    name += rng.choice(["", ".x", "_1", "+tag", "99", "-a"])
    return f"{name}@{rng.choice(['qq.com', 'example.com.cn', 'mail.example.org', '163.com', 'a-b.io'])}"


def api_key(rng: random.Random) -> str:
    def some(count: int, letters: str = _LETTERS + "0123456789") -> str:
        return "".join(rng.choice(letters) for _ in range(count))

    return rng.choice(
        [
            "sk-" + some(48), "sk-proj-" + some(40), "ghp_" + some(36), "AKIA" + some(16, "ABCDEFGHJKLMNPQ234567"),
            "AIza" + some(35), "hf_" + some(34), "glpat-" + some(20), "xoxb-" + some(24), "LTAI" + some(20),
            some(32, "0123456789abcdef") + "." + some(16), "sk_live_" + some(24),
            "eyJ" + some(30) + ".eyJ" + some(60) + "." + some(43),
        ]
    )  # fmt: skip


def ip_address(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return ".".join(str(rng.randint(0, 255)) for _ in range(4))
    groups = [f"{rng.getrandbits(16):x}" for _ in range(8)]
    if rng.random() < 0.5:
        groups[3:6] = [""]
    return ":".join(groups)


def grouped(rng: random.Random, kind: str, value: str) -> str:
    """Write a number as people do: in groups, with one separator."""
    sizes = {"mobile": [3, 4, 4], "id_number": [6, 8, 4], "bank_card": [4, 4, 4, 4, 4]}[kind]
    parts, rest = [], value
    for size in sizes:
        if rest:
            parts.append(rest[:size])
            rest = rest[size:]
    return rng.choice(" -").join(parts)


KINDS = {
    "id_number": id_number, "bank_card": card, "mobile": mobile, "email": email, "api_key": api_key,
    "ip_address": ip_address,
}  # fmt: skip


def private_sample(rng: random.Random, kind: str) -> Sample:
    """Return a text with one or two pieces of private data of a kind."""
    sample = Sample("")
    for index, part in enumerate(rng.choice(_FRAMES).split("{}")):
        if index:
            value = KINDS[kind](rng)
            if kind in ("id_number", "bank_card", "mobile") and rng.random() < 0.4:
                value = grouped(rng, kind, value)
            if kind == "mobile" and rng.random() < 0.1:
                value = rng.choice(["+86 ", "86-", "0086"]) + value
            wide = kind != "api_key" and rng.random() < 0.25
            if wide:
                value = value.translate(_WIDE)
            begin = len(sample.text)
            sample.text += value
            begin += 1 if value[0] in "+\uff0b" else 0
            sample.private.append((kind, begin, len(sample.text)))
        sample.text += part
    return sample


def harmless_sample(rng: random.Random) -> Sample:
    """Return a text with what is near to private data, and is none."""

    def digits(count: int) -> str:
        return "".join(rng.choice("0123456789") for _ in range(count))

    def wrong_id() -> str:
        value = id_number(rng)
        return value[:-1] + rng.choice([d for d in "0123456789X" if d != value[-1]])

    def wrong_card() -> str:
        value = card(rng)
        return value[:-1] + rng.choice([d for d in "0123456789" if d != value[-1]])

    def digest() -> str:
        return "".join(rng.choice("0123456789abcdef") for _ in range(rng.choice([32, 40, 64])))

    things = [
        wrong_card, lambda: digits(rng.choice([5, 6, 7, 8, 9, 10, 12, 20, 24, 30])), digest,
        lambda: "1" + rng.choice("012") + digits(9), lambda: f"{rng.random():.{rng.randint(3, 17)}f}",
        lambda: f"2024-{rng.randint(1, 12):02}-07 {rng.randint(0, 23):02}:{rng.randint(0, 59):02}:07",
        lambda: f"20241124{rng.randint(0, 235959):06}{digits(4)}", lambda: str(1_600_000_000_000 + rng.getrandbits(37)),
        lambda: f"v{rng.randint(0, 9)}.{rng.randint(0, 20)}.{rng.randint(0, 9)}.{rng.randint(0, 99)}",
        lambda: f"{rng.randint(256, 999)}.1.2.3", lambda: f"1.2.3.4.{rng.randint(1, 9)}", lambda: "std::vector<int>",
        lambda: f"¥{rng.randint(1, 999)},{digits(3)}.{digits(2)}", lambda: "@decorator", lambda: "user@localhost",
        lambda: "sk-short", lambda: f"0{rng.choice(['10', '21', '755'])}-{rng.randint(2, 8)}{digits(7)}",
        lambda: f"{digits(4)} {digits(4)}", lambda: "00:1b:44:11:3a:b7", lambda: "".join(rng.choices(_LETTERS, k=40)),
        lambda: rng.choice(_SURNAMES) + rng.choice(_GIVEN), lambda: wrong_id() if rng.random() < 0.5 else digits(15),
    ]  # fmt: skip
    return Sample("".join(f"{part}{rng.choice(things)()}" for part in rng.choice(_FRAMES).split("{}")[:-1]) + "。")
