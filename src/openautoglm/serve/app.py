"""The HTTP application: its routes, and how their errors are answered."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response
from starlette.types import ASGIApp

from openautoglm import __version__
from openautoglm.errors import InvalidRequestError
from openautoglm.log import get_logger
from openautoglm.serve.answer import Answer, Choices, stream_answer, whole_answer
from openautoglm.serve.audited import Audited
from openautoglm.serve.body import ClientGoneError, body_bytes, read_json
from openautoglm.serve.chat import ChatChoices
from openautoglm.serve.completions import CompletionChoices
from openautoglm.serve.connection import EventStream, WholeAnswer, unless_gone
from openautoglm.serve.context import ServeContext
from openautoglm.serve.extension import Extension
from openautoglm.serve.generation import Generation, start
from openautoglm.serve.information import check_model, information_routes
from openautoglm.serve.intake import BodyCharge
from openautoglm.serve.memory import memory_routes
from openautoglm.serve.metrics import RequestMeter
from openautoglm.serve.middleware import Edge
from openautoglm.serve.openapi import add_schemas, body_of
from openautoglm.serve.parsing import parse
from openautoglm.serve.profiling import profile_routes
from openautoglm.serve.prompts import Prompt, chat_prompt, completion_prompts, fit_of
from openautoglm.serve.refusals import CHAT_FIELDS, COMPLETION_FIELDS, refuse_chat_fields, refuse_completion_fields
from openautoglm.serve.replies import KNOWN_ERRORS, internal_reply, reply_for
from openautoglm.serve.sampling import chat_sampling, completion_sampling, deadline_of
from openautoglm.serve.schemas import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    MemoryBody,
    ProfileBody,
    ReportBody,
    SamplingBody,
    SplitBody,
    TokenizeBody,
)
from openautoglm.serve.splitting import split_routes
from openautoglm.serve.tools import tooling_of

_CLIENT_GONE_STATUS = 499
_logger = get_logger(__name__)


def create_app(context: ServeContext) -> ASGIApp:
    """Return the application for one served model."""
    app = FastAPI(title="openautoglm", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(information_routes(context))
    app.include_router(_generation_routes(context))
    app.include_router(memory_routes(context))
    app.include_router(split_routes(context))
    app.include_router(profile_routes(context))
    add_schemas(
        app, (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody, MemoryBody, ProfileBody, ReportBody, SplitBody)
    )
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
    return (reply or internal_reply(request_id)).response()


def _generation_routes(context: ServeContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions", openapi_extra=body_of(ChatBody))
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation."""
        meter = context.metrics.meter()
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = parse(ChatBody, await read_json(request, context.settings, charge))
            return await unless_gone(request.receive, _chat(context, request, body, charge, meter))

    @router.post("/v1/completions", openapi_extra=body_of(CompletionBody))
    async def completions(request: Request) -> Response:
        """Continue one or several prompts."""
        meter = context.metrics.meter()
        async with context.intake.body(body_bytes(request, context.settings)) as charge:
            body = parse(CompletionBody, await read_json(request, context.settings, charge))
            return await unless_gone(request.receive, _completion(context, request, body, charge, meter))

    return router


async def _chat(
    context: ServeContext, request: Request, body: ChatBody, charge: BodyCharge, meter: RequestMeter
) -> Response:
    answer = request.scope["answer"] = _new_answer(context, body, "chatcmpl")
    refuse_chat_fields(body)
    answer.extension.ignored_fields(body, CHAT_FIELDS)
    tooling = tooling_of(context, body, answer.extension)
    sampling = chat_sampling(body, context.default_sampling)
    context.privacy.check_sampling(sampling)
    prompt = await chat_prompt(
        context,
        body.messages,
        add_generation_prompt=body.add_generation_prompt is not False,
        variables=tooling.variables,
        fit=fit_of(body.truncate, sampling, context),
        tools=tooling.tools,
    )
    _tell_changes(answer, [prompt])
    inside = prompt.opens_reasoning
    sampling = tooling.constrained(sampling, inside=inside)
    parsers = tooling.parsers(sampling, inside=inside)
    choices = ChatChoices(context, parsers, answer.extension, logprobs=bool(body.logprobs))
    prompts = [prompt]
    body.messages.clear()
    body.chat_template_kwargs = body.tools = None
    del prompt
    generation = choices.generation = start(
        context,
        prompts,
        sampling,
        completion_id=answer.id,
        priority=body.priority or 0,
        deadline_seconds=deadline_of(body),
        session_id=body.session_id,
        caller=request.scope["caller"],
        allowance=request.scope["allowance"],
        meter=meter,
        on_accepted=charge.release,
    )
    return await _answer(context, request, body, answer, generation, choices)


async def _completion(
    context: ServeContext, request: Request, body: CompletionBody, charge: BodyCharge, meter: RequestMeter
) -> Response:
    answer = request.scope["answer"] = _new_answer(context, body, "cmpl")
    refuse_completion_fields(body)
    answer.extension.ignored_fields(body, COMPLETION_FIELDS)
    sampling = completion_sampling(body, context.default_sampling)
    context.privacy.check_sampling(sampling)
    echo = bool(body.echo)
    special = body.add_special_tokens is not False
    fit = fit_of(body.truncate, sampling, context)
    prompts = await completion_prompts(context, body.prompt, add_special_tokens=special, echo=echo, fit=fit)
    _tell_changes(answer, prompts)
    if len(prompts) * sampling.n > context.settings.max_choices:
        raise InvalidRequestError(
            f"{len(prompts)} prompts with n {sampling.n} are more than {context.settings.max_choices} choices",
            param="n",
        )
    choices = CompletionChoices(context, prompts, sampling, echo=echo)
    body.prompt = None
    generation = start(
        context,
        prompts,
        sampling,
        completion_id=answer.id,
        priority=body.priority or 0,
        deadline_seconds=deadline_of(body),
        session_id=body.session_id,
        caller=request.scope["caller"],
        allowance=request.scope["allowance"],
        meter=meter,
        on_accepted=charge.release,
    )
    return await _answer(context, request, body, answer, generation, choices)


def _new_answer(context: ServeContext, body: SamplingBody, prefix: str) -> Answer:
    description = context.description
    extension = Extension(server=description.notices, strict=context.settings.strict)
    model = check_model(context, body.model)
    return Answer(prefix=prefix, model=model, fingerprint=description.fingerprint, extension=extension)


def _tell_changes(answer: Answer, prompts: Sequence[Prompt]) -> None:
    """Tell what was cut out of the prompts or replaced in them."""
    for index, prompt in enumerate(prompts):
        answer.extension.redacted("prompt", prompt.redacted)
        if prompt.cut is not None:
            answer.extension.cut(index, prompt.cut)


async def _answer(
    context: ServeContext,
    request: Request,
    body: SamplingBody,
    answer: Answer,
    generation: Generation,
    choices: Choices,
) -> Response:
    """Answer whole or as a stream; the generation is closed however it ends."""
    streams = False
    request.scope["generation"] = generation
    if body.model_extra is not None:
        body.model_extra.clear()
    try:
        if not body.stream:
            return await _whole(context, answer, generation, choices)
        ping_seconds = context.settings.ping_seconds
        # Whatever the engine refuses, it refuses at once: with the first event, or a silence, the answer is a 200.
        first = await generation.next(ping_seconds)
        events = stream_answer(
            answer,
            generation,
            choices,
            first,
            include_usage=body.stream_options is not None and bool(body.stream_options.include_usage),
            ping_seconds=ping_seconds,
            request_id=request.scope["request_id"],
        )
        streams = True
        return EventStream(events, generation.close, client_seconds=context.settings.client_seconds)
    finally:
        if not streams:
            await generation.close()


async def _whole(context: ServeContext, answer: Answer, generation: Generation, choices: Choices) -> Response:
    charge = context.intake.answer()
    try:
        return WholeAnswer(await whole_answer(answer, generation, choices, charge), charge.release)
    except BaseException:
        charge.release()
        raise
