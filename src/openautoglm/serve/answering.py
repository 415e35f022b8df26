"""From a request to generate to its response: one way for all protocols, which differ in how they write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import Request
from starlette.responses import Response

from openautoglm.errors import InvalidRequestError
from openautoglm.serve.answer import Answer, ChoicesWriter, Writer, stream_answer, whole_answer
from openautoglm.serve.chat import ChatChoices
from openautoglm.serve.completions import CompletionChoices
from openautoglm.serve.connection import EventStream, WholeAnswer
from openautoglm.serve.context import ServeContext
from openautoglm.serve.extension import Extension
from openautoglm.serve.generation import Generation, start
from openautoglm.serve.information import check_model
from openautoglm.serve.intake import BodyCharge
from openautoglm.serve.metrics import RequestMeter
from openautoglm.serve.parts import Parts
from openautoglm.serve.priority import wanted_priority
from openautoglm.serve.prompts import Prompt, chat_prompt, completion_prompts, fit_of
from openautoglm.serve.refusals import CHAT_FIELDS, COMPLETION_FIELDS, refuse_chat_fields, refuse_completion_fields
from openautoglm.serve.sampling import chat_sampling, completion_sampling, deadline_of
from openautoglm.serve.schemas import ChatBody, CompletionBody, SamplingBody
from openautoglm.serve.tools import tooling_of
from openautoglm.spec.sampling import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a protocol's writer may tell of the request."""

    context: ServeContext
    answer: Answer
    body: ChatBody
    sampling: SamplingParams
    parts: Parts
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatProtocol:
    """How a protocol answers a conversation: the beginning of its answers' ids, and what writes them."""

    prefix: str
    writer: Callable[[Asked], Writer]


def _chat_writer(asked: Asked) -> Writer:
    choices = ChatChoices(asked.context, asked.parts, logprobs=bool(asked.body.logprobs))
    return ChoicesWriter(asked.answer, choices, include_usage=_includes_usage(asked.body))


CHAT_COMPLETIONS = ChatProtocol(prefix="chatcmpl-", writer=_chat_writer)


async def answer_chat(
    context: ServeContext,
    request: Request,
    body: ChatBody,
    charge: BodyCharge,
    meter: RequestMeter,
    protocol: ChatProtocol = CHAT_COMPLETIONS,
) -> Response:
    """Answer a conversation; a body of another protocol has been written as one of chat completions."""
    answer = request.scope["answer"] = new_answer(context, body.model, protocol.prefix)
    refuse_chat_fields(body)
    answer.extension.ignored_fields(body, CHAT_FIELDS)
    tooling = tooling_of(context, body, answer.extension)
    sampling = chat_sampling(body, context.default_sampling)
    deadline = deadline_of(body, request.scope["begin_seconds"])
    context.privacy.check_sampling(sampling)
    prompt = await chat_prompt(
        context,
        body.messages,
        add_generation_prompt=body.add_generation_prompt is not False,
        variables=tooling.variables,
        fit=fit_of(body.truncate, sampling, context),
        tools=tooling.tools,
        deadline=deadline,
    )
    tell_changes(answer, [prompt])
    inside = prompt.opens_reasoning
    sampling = tooling.constrained(sampling, inside=inside)
    parts = Parts(tooling.parsers(sampling, inside=inside), answer.extension)
    writer = protocol.writer(
        Asked(
            context=context,
            answer=answer,
            body=body,
            sampling=sampling,
            parts=parts,
            num_prompt_tokens=len(prompt.tokens),
        )
    )
    prompts = [prompt]
    body.messages.clear()
    body.chat_template_kwargs = body.tools = None
    del prompt
    generation = start(
        context,
        prompts,
        sampling,
        completion_id=answer.id,
        priority=wanted_priority(body.priority, body.service_tier),
        deadline=deadline,
        session_id=body.session_id,
        caller=request.scope["caller"],
        allowance=request.scope["allowance"],
        meter=meter,
        on_accepted=charge.release,
    )
    parts.begin(generation)
    return await _answer(context, request, body, answer, generation, writer)


async def answer_completion(
    context: ServeContext, request: Request, body: CompletionBody, charge: BodyCharge, meter: RequestMeter
) -> Response:
    """Continue prompts."""
    answer = request.scope["answer"] = new_answer(context, body.model, "cmpl-")
    refuse_completion_fields(body)
    answer.extension.ignored_fields(body, COMPLETION_FIELDS)
    sampling = completion_sampling(body, context.default_sampling)
    deadline = deadline_of(body, request.scope["begin_seconds"])
    context.privacy.check_sampling(sampling)
    echo = bool(body.echo)
    special = body.add_special_tokens is not False
    fit = fit_of(body.truncate, sampling, context)
    prompts = await completion_prompts(
        context, body.prompt, add_special_tokens=special, echo=echo, fit=fit, deadline=deadline
    )
    tell_changes(answer, prompts)
    if len(prompts) * sampling.n > context.settings.max_choices:
        raise InvalidRequestError(
            f"{len(prompts)} prompts with n {sampling.n} are more than {context.settings.max_choices} choices",
            param="n",
        )
    choices = CompletionChoices(context, prompts, sampling, echo=echo)
    writer = ChoicesWriter(answer, choices, include_usage=_includes_usage(body))
    body.prompt = None
    generation = start(
        context,
        prompts,
        sampling,
        completion_id=answer.id,
        priority=wanted_priority(body.priority, body.service_tier),
        deadline=deadline,
        session_id=body.session_id,
        caller=request.scope["caller"],
        allowance=request.scope["allowance"],
        meter=meter,
        on_accepted=charge.release,
    )
    return await _answer(context, request, body, answer, generation, writer)


def new_answer(context: ServeContext, model: str | None, prefix: str) -> Answer:
    """Return an answer from the model of that name; raise `ReplyError` (404) for one that is not served here."""
    description = context.description
    extension = Extension(server=description.notices, strict=context.settings.strict)
    name = check_model(context, model)
    return Answer(prefix=prefix, model=name, fingerprint=description.fingerprint, extension=extension)


def tell_changes(answer: Answer, prompts: Sequence[Prompt]) -> None:
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
    writer: Writer,
) -> Response:
    """Answer whole or as a stream; the generation is closed however it ends."""
    streams = False

    async def close() -> None:
        writer.close()
        await generation.close()

    request.scope["generation"] = generation
    if body.model_extra is not None:
        body.model_extra.clear()
    try:
        if not body.stream:
            return await _whole(context, answer, generation, writer)
        ping_seconds = context.settings.ping_seconds
        # Whatever the engine refuses, it refuses at once: with the first event, or a silence, the answer is a 200.
        first = await generation.next(ping_seconds)
        events = stream_answer(
            answer,
            generation,
            writer,
            first,
            ping_seconds=ping_seconds,
            request_id=request.scope["request_id"],
        )
        streams = True
        return EventStream(events, close, client_seconds=context.settings.client_seconds)
    finally:
        if not streams:
            await close()


def _includes_usage(body: SamplingBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


async def _whole(context: ServeContext, answer: Answer, generation: Generation, writer: Writer) -> Response:
    charge = context.intake.answer()
    try:
        return WholeAnswer(await whole_answer(answer, generation, writer, charge), charge.release)
    except BaseException:
        charge.release()
        raise
