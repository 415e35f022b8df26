"""Cutting a prompt to the context, only for a request that asks for it.

    truncate "head"    | marks | cut ........... | kept .................... |     the newest tokens stay
    truncate "middle"  | marks | kept ... | cut ........... | kept .......... |     both ends stay

Marks are the tokens that every text of the model begins with (beginning of sequence, say): it is lost without them.
Marks of roles are cut like text: kept alone, the system's would turn what follows them into the system's words.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from openautoglm.spec.sampling import SamplingParams

HEAD, MIDDLE = "head", "middle"
# What an answer of open length is left of the context.
_OPEN_ANSWER_SHARE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Tokens [begin, begin + num_tokens) of a prompt of `num_prompt_tokens` that were dropped."""

    side: str
    begin: int
    num_tokens: int
    num_prompt_tokens: int


def prompt_room(sampling: SamplingParams, context_tokens: int) -> int:
    """Return how many tokens a prompt that may be cut is cut to: the context less `max_tokens`.

    Without `max_tokens` a quarter of the context, or `min_tokens` if that is more, is left for the answer.
    """
    if sampling.max_tokens is not None:
        return context_tokens - sampling.max_tokens
    return context_tokens - max(1, sampling.min_tokens, context_tokens // _OPEN_ANSWER_SHARE)


def cut_prompt(
    tokens: Sequence[int], *, side: str, room: int, marks: Collection[int]
) -> tuple[tuple[int, ...], Cut | None]:
    """Return the prompt in at most `room` tokens, and what was cut.

    A prompt that fits is returned whole, and so is one whose marks alone leave no room, which admission refuses.
    """
    num_marks = next((index for index, token in enumerate(tokens) if token not in marks), len(tokens))
    num_cut = len(tokens) - room
    if num_cut <= 0 or num_marks >= room:
        return tuple(tokens), None
    begin = num_marks if side == HEAD else num_marks + (room - num_marks) // 2
    kept = (*tokens[:begin], *tokens[begin + num_cut :])
    return kept, Cut(side=side, begin=begin, num_tokens=num_cut, num_prompt_tokens=len(tokens))
