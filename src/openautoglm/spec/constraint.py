"""What an answer must look like: a schema, a regular expression or a grammar that every token has to follow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from openautoglm.errors import InvalidRequestError

MAX_CONSTRAINT_BYTES = 1 << 18
MAX_CONSTRAINT_CHOICES = 1024


class ConstraintKind(StrEnum):
    """How `Constraint.text` is written.

    A grammar is Lark as llguidance reads it: `start` is its first rule, `%json {...}` stands for a schema,
    `%regex {...}` for substrings, `<|name|>` for a special token of the model and `<[7]>` for a token by its id.
    """

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """Bounds every choice of a request to texts that match `text` as a whole; the model's end comes only after a match.

    `param` names the field of the request that it came from, for errors. Raises `InvalidRequestError` for text that is
    empty, no Unicode or too long; whether it can be compiled is known when the engine has tried.
    """

    kind: ConstraintKind
    text: str
    param: str = "constraint"

    def __post_init__(self) -> None:
        """Check the size."""
        if not isinstance(self.kind, ConstraintKind) or not isinstance(self.text, str):
            raise InvalidRequestError("a constraint has a ConstraintKind and a text", param=self.param)
        try:
            num_bytes = len(self.text.encode("utf-8"))
        except UnicodeEncodeError:
            raise InvalidRequestError(
                f"{self.param} holds a lone surrogate, which stands for nothing: send valid Unicode", param=self.param
            ) from None
        if not 0 < num_bytes <= MAX_CONSTRAINT_BYTES:
            raise InvalidRequestError(
                f"{self.param} has {num_bytes} bytes of text, 1 to {MAX_CONSTRAINT_BYTES} are allowed: send a smaller "
                f"{self.kind.value}",
                param=self.param,
            )

    @classmethod
    def json_object(cls, *, param: str = "constraint") -> Constraint:
        """Any JSON object."""
        return cls(kind=ConstraintKind.JSON_SCHEMA, text='{"type":"object"}', param=param)

    @classmethod
    def one_of(cls, choices: Sequence[str], *, param: str = "constraint") -> Constraint:
        """One of these texts, literally."""
        if not 0 < len(choices) <= MAX_CONSTRAINT_CHOICES or not all(isinstance(one, str) and one for one in choices):
            raise InvalidRequestError(
                f"{param} must be a list of 1 to {MAX_CONSTRAINT_CHOICES} texts that are not empty", param=param
            )
        literals = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return cls(kind=ConstraintKind.GRAMMAR, text=f"start: {literals}", param=param)
