"""From a JSON object to a typed body; the first thing wrong is named, what was sent is not repeated."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from openautoglm.errors import InvalidRequestError

B = TypeVar("B", bound=BaseModel)


def parse(kind: type[B], value: dict[str, Any]) -> B:
    """Return `value` as `kind`; raise `InvalidRequestError` naming the field."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        # Neither input nor context: they hold prompts.
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = _field_name(first["loc"])
        raise InvalidRequestError(f"{where or 'the body'}: {first['msg']}", param=where or None) from None


def _field_name(location: tuple[int | str, ...]) -> str:
    """Write ("messages", 0, "content", "str") as messages[0].content."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in _UNION_MEMBERS:
            name += f".{part}" if name else part
    return name


# Pydantic adds the member of a union that failed to the field's location.
_UNION_MEMBERS = frozenset({"str", "int", "float", "bool", "list", "dict"})
