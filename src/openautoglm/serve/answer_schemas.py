"""Answers as types, for the server's description of itself: written by hand elsewhere, held to these by the tests."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class AnswerPart(BaseModel):
    """A JSON object of an answer; more fields may come."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class ErrorDetail(AnswerPart):
    """What went wrong: `code` is stable, `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(AnswerPart):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


class PromptTokensDetails(AnswerPart):
    """Tokens that were found in the prefix cache."""

    cached_tokens: int


class CompletionTokensDetails(AnswerPart):
    """Tokens of reasoning."""

    reasoning_tokens: int


class UsageAnswer(AnswerPart):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class GeneratedAnswer(AnswerPart):
    """What chat and plain completions share."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: UsageAnswer


class AssistantMessage(AnswerPart):
    """What the model wrote."""

    role: Literal["assistant"]
    content: str | None


class ChatChoice(AnswerPart):
    """One answer to a chat."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: str


class ChatAnswer(GeneratedAnswer):
    """The answer to POST /v1/chat/completions that is no stream."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionChoice(AnswerPart):
    """One continuation."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str


class CompletionAnswer(GeneratedAnswer):
    """The answer to POST /v1/completions that is no stream."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelAnswer(AnswerPart):
    """A name of the served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelsAnswer(AnswerPart):
    """All names of the served model."""

    object: Literal["list"]
    data: list[ModelAnswer]


class TokenizeAnswer(AnswerPart):
    """Tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(AnswerPart):
    """Text of tokens."""

    prompt: str


class TextPiece(AnswerPart):
    """A piece of a document; offsets count characters."""

    index: int
    text: str
    overlap_begin: int
    begin: int
    end: int
    num_tokens: int
    boundary: str
    broken: str | None


class SplitAnswer(AnswerPart):
    """The pieces of a document."""

    object: Literal["list"]
    data: list[TextPiece]


class HealthAnswer(AnswerPart):
    """Whether the server takes requests (`ready`), and whether its engine gets on (`live`)."""

    status: str
    live: bool
    ready: bool
    draining: bool


class ExplainAnswer(AnswerPart):
    """Where the time of a request went."""

    id: str
    object: Literal["request.explanation"]
    requests: list[dict[str, Any]]


class MemoryAnswer(AnswerPart):
    """Budget, what takes it, and the ladder."""

    budget_bytes: int
    tree_bytes: int
    rung: str
    ledger: dict[str, int]


class MemoryReportsAnswer(AnswerPart):
    """Where the memory of each process is."""

    object: Literal["memory.reports"]
    reports: list[dict[str, Any]]
