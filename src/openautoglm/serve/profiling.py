"""A route that profiles the server: which functions its two processes are in, for a while."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from openautoglm.probe.stacks import Profiler
from openautoglm.serve.body import body_bytes, read_json
from openautoglm.serve.context import ServeContext
from openautoglm.serve.openapi import body_of
from openautoglm.serve.parsing import parse
from openautoglm.serve.replies import json_response
from openautoglm.serve.schemas import ProfileBody


def profile_routes(context: ServeContext) -> APIRouter:
    """Return the router of this route."""
    router = APIRouter()
    profiler = Profiler("http")

    @router.post("/admin/profile", openapi_extra=body_of(ProfileBody))
    async def profile(request: Request) -> Response:
        """Sample the stacks of both processes at once, and answer when that is done."""
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = parse(ProfileBody, await read_json(request, context.settings, charge))
        own = profiler.start(seconds=body.seconds, rate_hz=body.rate_hz)
        engine = await context.client.profile(seconds=body.seconds, rate_hz=body.rate_hz)
        profiles = [engine, await asyncio.wrap_future(own)]
        return json_response({"object": "profile", "profiles": profiles})

    return router
