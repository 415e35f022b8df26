"""The HTTP application: its routes, and how their errors are answered."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response
from starlette.types import ASGIApp

from openautoglm import __version__
from openautoglm.errors import InvalidRequestError
from openautoglm.log import get_logger
from openautoglm.serve.answering import answer_chat, answer_completion
from openautoglm.serve.audited import Audited
from openautoglm.serve.body import ClientGoneError, body_bytes, read_json
from openautoglm.serve.connection import unless_gone
from openautoglm.serve.context import ServeContext
from openautoglm.serve.embeddings import embeddings_routes
from openautoglm.serve.information import information_routes
from openautoglm.serve.memory import memory_routes
from openautoglm.serve.messages import messages_routes
from openautoglm.serve.messages_body import CountBody, MessagesBody
from openautoglm.serve.middleware import Edge
from openautoglm.serve.openapi import add_schemas, body_of
from openautoglm.serve.parsing import parse
from openautoglm.serve.profiling import profile_routes
from openautoglm.serve.replies import KNOWN_ERRORS, internal_reply, reply_for
from openautoglm.serve.responses import responses_routes
from openautoglm.serve.responses_body import ResponsesBody, ResponsesCountBody
from openautoglm.serve.schemas import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingsBody,
    MemoryBody,
    ProfileBody,
    ReportBody,
    SplitBody,
    TokenizeBody,
)
from openautoglm.serve.splitting import split_routes

_CLIENT_GONE_STATUS = 499
_BODIES = (
    ChatBody, CompletionBody, MessagesBody, CountBody, ResponsesBody, ResponsesCountBody, EmbeddingsBody, TokenizeBody,
    DetokenizeBody, SplitBody, MemoryBody, ReportBody, ProfileBody,
)  # fmt: skip
_logger = get_logger(__name__)


def create_app(context: ServeContext) -> ASGIApp:
    """Return the application for one served model."""
    app = FastAPI(title="openautoglm", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(information_routes(context))
    app.include_router(_generation_routes(context))
    app.include_router(embeddings_routes(context))
    app.include_router(messages_routes(context))
    app.include_router(responses_routes(context))
    app.include_router(memory_routes(context))
    app.include_router(split_routes(context))
    app.include_router(profile_routes(context))
    add_schemas(app, _BODIES)
    for kind in (*KNOWN_ERRORS, RequestValidationError, ClientGoneError, Exception):
        app.add_exception_handler(kind, _answer_error)
    audited = app if context.audit is None else Audited(app, context.audit, context.metrics, app.openapi()["paths"])
    return Edge(audited, context)


async def _answer_error(request: Request, error: Exception) -> Response:
    """Answer an error. One that is not known here is raised again afterwards, and `Edge` logs it."""
    if isinstance(error, ClientGoneError):
        return Response(status_code=_CLIENT_GONE_STATUS)
    if isinstance(error, RequestValidationError):
        error = InvalidRequestError("the path or query is malformed")
    request_id = request.scope["request_id"]
    reply = reply_for(error)
    request.scope["error_code"] = "internal_error" if reply is None else reply.code
    if reply is not None and reply.status >= 500:
        _logger.warning("request %s: %s", request_id, error)
    return (reply or internal_reply(request_id)).response(request.scope["path"], request_id)


def _generation_routes(context: ServeContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", openapi_extra=body_of(ChatBody))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        meter = context.metrics.meter()
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = parse(ChatBody, await read_json(request, context.settings, charge))
            return await unless_gone(request.receive, answer_chat(context, request, body, charge, meter))

    @router.post("/v1/completions", openapi_extra=body_of(CompletionBody))
    async def completions(request: Request) -> Response:
        """Continue one or several prompts."""
        meter = context.metrics.meter()
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = parse(CompletionBody, await read_json(request, context.settings, charge))
            return await unless_gone(request.receive, answer_completion(context, request, body, charge, meter))

    return router
