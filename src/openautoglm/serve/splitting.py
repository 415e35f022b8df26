"""POST /v1/split: a long document in pieces that fit, cut where its meaning pauses."""

from __future__ import annotations

import asyncio

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from openautoglm.serve.body import body_bytes, read_json
from openautoglm.serve.connection import WholeAnswer, unless_gone
from openautoglm.serve.context import ServeContext
from openautoglm.serve.information import check_model
from openautoglm.serve.openapi import body_of
from openautoglm.serve.parsing import parse
from openautoglm.serve.schemas import SplitBody
from openautoglm.text.split import Piece, split_text

# Pieces that one answer may have; beyond, their objects would take more than the text.
MAX_PIECES = 4096
# A piece in the answer beside its text.
_PIECE_BYTES = 256


def split_routes(context: ServeContext) -> APIRouter:
    """Return the router of this route."""
    router = APIRouter()

    @router.post("/v1/split", openapi_extra=body_of(SplitBody))
    async def split(request: Request) -> Response:
        """Split a document at its sections, paragraphs, sentences and clauses, within a budget of tokens."""
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = parse(SplitBody, await read_json(request, context.settings, charge))
            charge.add_objects(min(len(body.text), MAX_PIECES))
            return await unless_gone(request.receive, _split(context, body))

    return router


async def _split(context: ServeContext, body: SplitBody) -> Response:
    model = check_model(context, body.model)
    loop = asyncio.get_running_loop()
    pieces = await loop.run_in_executor(
        context.split_thread,
        lambda: split_text(
            body.text,
            context.tokenizer,
            max_tokens=body.max_tokens,
            overlap_tokens=body.overlap_tokens,
            max_pieces=MAX_PIECES,
        ),
    )
    charge = context.intake.answer()
    try:
        # JSON escapes at most double what is not a control character, of which a text has few.
        num_characters = sum(piece.end - piece.overlap_begin for piece in pieces)
        charge.add(num_characters * (1 if body.text.isascii() else 3) + len(pieces) * _PIECE_BYTES)
        answer = await loop.run_in_executor(context.split_thread, lambda: _answer(model, body, pieces))
        return WholeAnswer(answer, charge.release)
    except BaseException:
        charge.release()
        raise


def _answer(model: str, body: SplitBody, pieces: list[Piece]) -> bytes:
    """Return the answer's JSON; offsets count characters (code points) of the text that was sent."""
    return msgspec.json.encode(
        {
            "object": "list",
            "model": model,
            "max_tokens": body.max_tokens,
            "overlap_tokens": body.overlap_tokens,
            "data": [
                {
                    "object": "text.piece",
                    "index": index,
                    "text": body.text[piece.overlap_begin : piece.end],
                    "overlap_begin": piece.overlap_begin,
                    "begin": piece.begin,
                    "end": piece.end,
                    "num_tokens": piece.num_tokens,
                    "boundary": piece.boundary.name.lower(),
                    "broken": piece.broken,
                }
                for index, piece in enumerate(pieces)
            ],
        }
    )
