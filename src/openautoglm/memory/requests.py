"""Bytes that requests take while they are under way, out of bounded shares of a plan's headroom.

    headroom | rendering | engine: requests | HTTP: bodies | answers | events | spare: kernel, sockets, allocator |

Nothing in a share is taken before it is charged, and what finds no room is refused with a type; so headroom is enough
whatever clients do. The constants are upper bounds of what `tests/memory/test_requests.py` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

from openautoglm.units import KIB, MIB

# A template's worker above what it takes when it is idle.
TEMPLATE_BYTES = 18 * MIB
# Of the rest, in parts of 46: what the engine's requests, and in the HTTP process bodies, answers and events take.
_ENGINE_PARTS, _BODY_PARTS, _ANSWER_PARTS, _EVENT_PARTS, _ALL_PARTS = 8, 13, 13, 4, 46

# A body that is read, parsed, rendered and tokenised: its copies and its tokens, per byte as it came.
BODY_COPIES = 12
# A string, a bracket or a brace of its JSON, as a part of Python's objects.
OBJECT_BYTES = 144
# An answer that is collected: its bytes, the whole reply made of them, and the socket's copy.
ANSWER_COPIES = 3
# An event that waits for its reader, with its one token, and each logprob in it.
EVENT_BYTES = 768
EVENT_LOGPROB_BYTES = 128
# A token of an event that was joined to another.
EVENT_TOKEN_BYTES = 48

_MAX_BODY_BYTES = 8 * MIB
_REQUEST_BYTES = 8 * KIB
_SEQUENCE_BYTES = 6 * KIB
_PROMPT_TOKEN_BYTES = 4
_SEQUENCE_TOKEN_BYTES = 20  # tokens in a buffer that doubles, the block table, keys of the prefix cache


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSpace:
    """The shares, in bytes."""

    engine_bytes: int
    body_bytes: int
    answer_bytes: int
    event_bytes: int

    @property
    def max_body_bytes(self) -> int:
        """The largest body that can be taken at all."""
        return min(_MAX_BODY_BYTES, self.body_bytes // BODY_COPIES)


def request_space(headroom_bytes: int) -> RequestSpace:
    """Return the shares of a headroom; a plan's is 64 MiB or more."""
    rest = max(0, headroom_bytes - TEMPLATE_BYTES)
    return RequestSpace(
        engine_bytes=rest * _ENGINE_PARTS // _ALL_PARTS,
        body_bytes=rest * _BODY_PARTS // _ALL_PARTS,
        answer_bytes=rest * _ANSWER_PARTS // _ALL_PARTS,
        event_bytes=rest * _EVENT_PARTS // _ALL_PARTS,
    )


def request_bytes(num_prompt_tokens: int, max_new_tokens: int, num_choices: int) -> int:
    """Return the most that a request takes in the engine's process beside KV blocks, from its arrival to its end."""
    sequence = _SEQUENCE_BYTES + (num_prompt_tokens + max_new_tokens) * _SEQUENCE_TOKEN_BYTES
    return _REQUEST_BYTES + num_prompt_tokens * _PROMPT_TOKEN_BYTES + num_choices * sequence


def event_bytes(num_logprobs: int, num_characters: int) -> int:
    """Return what an event with so many logprobs takes where it waits."""
    return EVENT_BYTES + num_logprobs * EVENT_LOGPROB_BYTES + 4 * num_characters
