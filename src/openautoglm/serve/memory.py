"""Routes about memory and time: the budget and the ladder, and where the time of a request went."""

from __future__ import annotations

import asyncio
import re

from fastapi import APIRouter, Request
from starlette.responses import Response

from openautoglm.engine.record import RequestRecord
from openautoglm.errors import ConfigError, InvalidRequestError
from openautoglm.serve.body import body_bytes, read_json
from openautoglm.serve.context import ServeContext
from openautoglm.serve.openapi import body_of
from openautoglm.serve.parsing import parse
from openautoglm.serve.replies import ErrorReply, ReplyError, json_response
from openautoglm.serve.schemas import MemoryBody, ReportBody
from openautoglm.units import parse_bytes

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def memory_routes(context: ServeContext) -> APIRouter:
    """Return the router of these routes."""
    router = APIRouter()

    @router.get("/admin/memory")
    async def show_memory() -> Response:
        """Show the budget, what takes it, and the ladder."""
        return json_response(await context.client.memory())

    @router.post("/admin/memory", openapi_extra=body_of(MemoryBody))
    async def set_memory(request: Request) -> Response:
        """Announce a new budget; the answer shows how far it is met already."""
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = parse(MemoryBody, await read_json(request, context.settings, charge))
        return json_response(await context.client.memory(_budget_bytes(body.memory)))

    @router.post("/admin/memory/report", openapi_extra=body_of(ReportBody))
    async def report_memory(request: Request) -> Response:
        """Tell where the memory of each process is, and write it down; `{}` asks for no more than that."""
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = parse(ReportBody, await read_json(request, context.settings, charge))
        reports = [await context.client.report(trace=body.trace)]
        if context.watchdog is not None:
            reports.append(await asyncio.to_thread(context.watchdog.report, trace=body.trace))
        return json_response({"object": "memory.reports", "reports": reports})

    @router.get("/v1/requests/{request_id}/explain")
    async def explain(request_id: str) -> Response:
        """Tell where the time of a request went; several prompts of one request are told one by one."""
        records = await _records(context, request_id) if _REQUEST_ID.fullmatch(request_id) else []
        if not records:
            message = (
                f"no request {request_id[:128]!r} is known here: give the id of an answer; old ones are forgotten, and "
                "all of them when the engine starts again"
            )
            raise ReplyError(ErrorReply(status=404, message=message, param="request_id", code="request_not_found"))
        return json_response({"id": request_id, "object": "request.explanation", "requests": records})

    return router


async def _records(context: ServeContext, request_id: str) -> list[RequestRecord]:
    """Return the records of an answer's prompts; the id may also name one of them."""
    single = await context.client.explain(request_id)
    if single is not None:
        return [single]
    records = []
    for index in range(context.settings.max_prompts):
        record = await context.client.explain(f"{request_id}-{index}")
        if record is None:
            break
        records.append(record)
    return records


def _budget_bytes(memory: str | int) -> int:
    try:
        num_bytes = memory if isinstance(memory, int) else parse_bytes(memory)
    except (ConfigError, OverflowError) as error:
        raise InvalidRequestError(f"memory: {error}", param="memory") from None
    if not 0 < num_bytes < 1 << 60:
        raise InvalidRequestError(f"memory must be above 0, got {memory}", param="memory")
    return num_bytes
