"""Request bodies: bounded in bytes, time, depth and structure before anything is built from them."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from starlette.requests import Request

from openautoglm.serve.intake import BodyCharge
from openautoglm.serve.replies import ErrorReply, ReplyError
from openautoglm.serve.settings import EdgeSettings
from openautoglm.units import format_bytes

# Strings, brackets and braces outside strings. Possessive, so that a broken string costs no second look.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+|[\[{]|[\]}]', re.DOTALL)
_MAX_STRUCTURE = 50_000


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete or answered."""


def body_bytes(request: Request, settings: EdgeSettings) -> int:
    """Return how many bytes the body has, or may have where the client does not say.

    Raises `ReplyError` for a body that will not be read: too large, or not plain JSON.
    """
    _check_headers(request, settings)
    length = request.headers.get("content-length", "")
    return int(length[:20]) if length.isdecimal() else settings.max_body_bytes


async def read_json(request: Request, settings: EdgeSettings, charge: BodyCharge) -> dict[str, Any]:
    """Read a body that `body_bytes` allowed as one JSON object; raise `ReplyError` for anything else.

    Peak: what `charge` was charged for it, here also for its objects: a short body may be made of many.
    """
    try:
        async with asyncio.timeout(settings.body_seconds):
            data = await _read_body(request, settings.max_body_bytes)
    except TimeoutError:
        message = f"the body did not arrive within {settings.body_seconds:g} s"
        raise ReplyError(ErrorReply(status=408, message=message, code="request_timeout")) from None
    charge.add_objects(check_structure(data, settings.max_json_depth))
    return parse_json(data)


def parse_json(data: bytes) -> dict[str, Any]:
    """Parse a JSON object whose structure was checked; raise `ReplyError` (400) for what is malformed or no object."""
    try:
        # Strict: UTF-8, no NaN or Infinity, no numbers out of range, no lone surrogates.
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _bad_json(f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise _bad_json(f"the body must be a JSON object, not {_json_name(value)}")
    return value


def _check_headers(request: Request, settings: EdgeSettings) -> None:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        # Also what keeps pages in a browser from posting here without asking first.
        raise ReplyError(
            ErrorReply(
                status=415,
                message=f"Content-Type must be application/json, not {content_type[:100] or 'missing'}",
                code="unsupported_media_type",
            )
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        message = f"Content-Encoding {encoding[:100]!r} is not accepted: send the body as it is"
        raise ReplyError(ErrorReply(status=415, message=message, code="unsupported_media_type"))
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > settings.max_body_bytes:
        raise _too_large(settings.max_body_bytes)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        piece: bytes = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise _too_large(max_bytes)
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def check_structure(data: bytes, max_depth: int, what: str = "the body") -> int:
    """Return how many strings, brackets and braces there are; raise `ReplyError` for too many or too deep ones."""
    depth = count = 0
    for count, match in enumerate(_STRUCTURE.finditer(data), start=1):
        first = data[match.start()]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        if depth > max_depth:
            raise _bad_json(f"{what} nests deeper than {max_depth} levels")
        if count > _MAX_STRUCTURE:
            raise _bad_json(f"{what} has more than {_MAX_STRUCTURE} strings, lists and objects")
    return count


def _too_large(max_bytes: int) -> ReplyError:
    message = f"the body is larger than {format_bytes(max_bytes)}, the limit of this server: send a shorter prompt"
    # The rest of the body is not worth reading.
    headers = (("Connection", "close"),)
    return ReplyError(ErrorReply(status=413, message=message, code="request_too_large", headers=headers))


def _bad_json(message: str) -> ReplyError:
    return ReplyError(ErrorReply(status=400, message=message, code="invalid_json"))


def _json_name(value: object) -> str:
    return {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
