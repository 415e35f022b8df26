"""`GrammarCompiler`: from a `Constraint` to a `Grammar` that tells which tokens may come next, by llguidance.

A grammar is hostile: it is tried in a child with limits first (`grammar_process`), then compiled here under the limits
of the parser that it passed there with. Each request gets a grammar of its own, since what llguidance shares between
copies has limits that one user would exhaust for all.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openautoglm.errors import ConstraintError, ConstraintLimitError
from openautoglm.spec.constraint import Constraint, ConstraintKind
from openautoglm.text.grammar_process import GrammarProcess, GrammarVocabulary, Verdict
from openautoglm.text.tokenizer import Tokenizer
from openautoglm.units import KIB, MIB

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# The library with its tables (measured: 9 MiB) and, for each entry of the vocabulary, the tries that masks are
# computed with, while they are made (measured: 375 bytes an entry at 151,000, and 105 for the list of its words).
LIBRARY_BYTES = 12 * MIB
ENTRY_BYTES = 560
# What a lexer takes for each of its states (measured: 300 bytes), and what a grammar takes anyway.
STATE_BYTES = KIB
GRAMMAR_BYTES = MIB // 2
# Strings that must keep a length, and automata of that kind, take new states with every token.
_LEAST_STATES, _STATES_PER_TOKEN, _MOST_STATES = 8192, 32, 1 << 15
# Runs of blanks between the parts of JSON end: a weak model would never leave them.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
# What every string of JSON may go on with: computed once for the vocabulary, used by nearly all masks.
_SLICES = (r'[^"\\\x00-\x1F\x7F]{1,30}', r'[^"\\\x00-\x1F\x7F]+')
_FIXED_LIMITS: dict[str, Any] = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_grammar_size": 200_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,
}

UInt32 = NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedGrammar:
    """A constraint that passed in the child: llguidance's text, its limits, and the most bytes that it may take."""

    source: str
    param: str
    limits: dict[str, Any]
    num_bytes: int


class Grammar:
    """Where one choice stands in its grammar. One thread at a time; copies share what was compiled.

    `allowed` is the mask of the next token, a bit each, little-endian in words of 32.
    """

    __slots__ = ("_mask", "_matcher", "_num_words", "_param", "allowed", "stopped")

    def __init__(self, matcher: LLMatcher, num_tokens: int, vocab_size: int, param: str) -> None:
        self._matcher = matcher
        self._param = param
        self._mask: UInt32 = np.zeros(-(-num_tokens // 32), dtype=np.uint32)
        self._num_words = -(-vocab_size // 32)
        self.allowed: UInt32 = self._mask[: self._num_words]
        self.stopped = False
        self._fill()

    def copy(self) -> Grammar:
        """Return another choice of the same request, where this one stands."""
        other = Grammar.__new__(Grammar)
        other._matcher = self._matcher.deep_copy()
        other._param, other._num_words, other.stopped = self._param, self._num_words, self.stopped
        other._mask = self._mask.copy()
        other.allowed = other._mask[: other._num_words]
        return other

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed, and compute the next mask; `stopped` is set where nothing may follow.

        Raises `ConstraintLimitError` where that takes more than it may.
        """
        self._matcher.consume_token(token)
        if not self._matcher.is_error() and self._matcher.is_stopped():
            self.stopped = True
            return
        self._fill()

    def _fill(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            reason = self._matcher.get_error().replace("<non-verbose/>", "").strip()[:200]
            raise ConstraintLimitError(
                f"{self._param} became too complex for its limits ({reason}): send a simpler one",
                param=self._param,
            )


class GrammarCompiler:
    """Compiles grammars over one vocabulary; makes the tables and the child on first use. For one thread, not the
    engine's: `check` waits for the child, and both may take a second.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._tables: LLTokenizer | None = None
        self._process = GrammarProcess(self._vocabulary)

    @property
    def table_bytes(self) -> int:
        """What library, tables and the waiting child take, once there was a grammar."""
        own_bytes = LIBRARY_BYTES + ENTRY_BYTES * self._vocab_size
        return own_bytes + self._process.idle_bytes(self._vocab_size)

    @property
    def check_bytes(self) -> int:
        """What a check may take above that."""
        return self._process.limits.memory_bytes

    @staticmethod
    def num_states(max_new_tokens: int) -> int:
        """Return how many states the lexer of an answer may have: a power of two, so that equal ones are found."""
        wanted = _LEAST_STATES + _STATES_PER_TOKEN * max_new_tokens
        return min(1 << (wanted - 1).bit_length(), _MOST_STATES)

    def extent(self, max_new_tokens: int) -> tuple[int, int]:
        """Return what a verdict on a constraint depends on beside its text."""
        return self.num_states(max_new_tokens), min(max_new_tokens, self._process.limits.probe_tokens)

    def check(self, constraint: Constraint, *, max_new_tokens: int) -> CheckedGrammar:
        """Try a constraint in the child; raise `ConstraintError`, or `ConstraintLimitError`, for what it cannot be."""
        if find_spec("llguidance") is None:
            raise ConstraintError(
                f"{constraint.param} needs the package llguidance, which is not installed here: install "
                "openautoglm[structured]",
                param=constraint.param,
            )
        source = grammar_source(constraint)
        num_states = self.num_states(max_new_tokens)
        limits = {**_FIXED_LIMITS, "max_lexer_states": num_states}
        verdict = self._process.check(source, limits, most_tokens=max_new_tokens)
        if verdict.error is not None:
            raise _refusal(constraint, verdict)
        num_bytes = GRAMMAR_BYTES + 2 * len(source) + verdict.num_bytes + num_states * STATE_BYTES
        return CheckedGrammar(source=source, param=constraint.param, limits=limits, num_bytes=num_bytes)

    def compile(self, checked: CheckedGrammar) -> Grammar:
        """Compile what passed; without the interpreter lock, except for the first time. Peak: `num_bytes` of it."""
        from llguidance import LLMatcher, LLParserLimits

        tables = self._make_tables()
        matcher = LLMatcher(tables, checked.source, log_level=0, limits=LLParserLimits(**checked.limits))
        return Grammar(matcher, tables.vocab_size, self._vocab_size, checked.param)

    def close(self) -> None:
        """End the child; safe to call twice."""
        self._process.close()

    def _vocabulary(self) -> GrammarVocabulary:
        tokenizer = self._tokenizer
        tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        tokens += [b""] * (self._vocab_size - len(tokens))
        eos = self._eos_token_ids
        if not eos:
            # llguidance needs an end: one behind the vocabulary, which nobody can draw.
            tokens.append(b"<|end|>")
            eos = (self._vocab_size,)
        special = sorted({*tokenizer.special_token_ids, *eos})
        return GrammarVocabulary(tokens=tuple(tokens), special_token_ids=tuple(special), eos_token_ids=eos)

    def _make_tables(self) -> LLTokenizer:
        if self._tables is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            vocabulary = self._vocabulary()
            wrapper = TokenizerWrapper(_Words(vocabulary, self._tokenizer))
            self._tables = LLTokenizer(wrapper, eos_token=list(vocabulary.eos_token_ids), slices=list(_SLICES))
        return self._tables


class _Words:
    """The token table as llguidance asks for it; text that the grammar forces is cut as the model's tokenizer does."""

    def __init__(self, vocabulary: GrammarVocabulary, tokenizer: Tokenizer) -> None:
        self.tokens = vocabulary.tokens
        self.special_token_ids = vocabulary.special_token_ids
        self.eos_token_id = vocabulary.eos_token_ids[0]
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def grammar_source(constraint: Constraint) -> str:
    """Return a constraint as llguidance reads it; raise `ConstraintError` for a schema that is no JSON object."""
    if constraint.kind is ConstraintKind.GRAMMAR:
        return constraint.text
    if constraint.kind is ConstraintKind.REGEX:
        return json.dumps({"grammars": [{"lark_grammar": _regex_grammar(constraint.text)}]})
    try:
        schema = json.loads(constraint.text)
        if schema is True:
            schema = {}
        if isinstance(schema, dict):
            schema["x-guidance"] = {"whitespace_pattern": _WHITESPACE}
            return json.dumps({"grammars": [{"json_schema": schema}]}, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ConstraintError(f"{constraint.param} is no JSON: {error}"[:300], param=constraint.param) from None
    raise ConstraintError(f"{constraint.param} must be a JSON object, a schema", param=constraint.param)


def _regex_grammar(pattern: str) -> str:
    from llguidance import regex_to_lark

    return f"start: /{regex_to_lark(pattern)}/"


def _refusal(constraint: Constraint, verdict: Verdict) -> ConstraintError:
    param = constraint.param
    if verdict.error == "invalid":
        return ConstraintError(f"{param} cannot be followed: {verdict.message}", param=param)
    limit = {
        "limit": f"passes a limit of the parser ({verdict.message})",
        "cpu": "takes more processor time to compile than it may",
        "wall": "takes longer to compile than it may",
        "memory": "takes more memory to compile than it may",
        "slow": f"takes {verdict.message} ms for a single token",
    }[verdict.error or "limit"]
    return ConstraintLimitError(f"{param} is too complex: it {limit}: send a simpler one", param=param)
