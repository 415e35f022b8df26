"""Request bodies as types. Types are checked strictly here; ranges by `SamplingParams`, meaning by the routes.

Fields that nobody knows are tolerated, as clients send them freely, and named in the answer; fields that OpenAI or vLLM
define and this server cannot honour are refused by `refusals`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, WithJsonSchema


class StopAtFirst(FailFast):
    """A list stops at its first bad item: a million of them must not become a million errors."""

    # Unions keep their members in a set.
    __hash__ = object.__hash__


TokenIds = Annotated[list[int], StopAtFirst()]
# What is checked elsewhere, for the server's description of itself.
_TEXTS = {"type": "array", "items": {"type": "string"}}
_TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_STOP = {"anyOf": [{"type": "string"}, _TEXTS, {"type": "null"}]}
_PROMPT = {
    "anyOf": [
        {"type": "string"},
        {**_TEXTS, "minItems": 1},
        _TOKENS,
        {"type": "array", "items": _TOKENS, "minItems": 1},
    ]
}
Role = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


class Body(BaseModel):
    """A JSON object: strict types, unknown fields tolerated."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class StreamOptions(Body):
    """What a stream carries beside its text."""

    include_usage: bool | None = None


class SamplingBody(Body):
    """The fields that chat and plain completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    n: int | None = None
    # str, or list of str: checked in `sampling`, before anything is built from it
    stop: Annotated[Any, WithJsonSchema(_STOP)] = None
    stop_token_ids: TokenIds | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    # What the answer must look like, in OpenAI's way, in vLLM's, and in vLLM's former one: see `constraints`.
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], StopAtFirst()] | None = None
    guided_grammar: str | None = None
    # Below 0 the queue "high", above 0 "batch"; checked against the key in `priority`.
    priority: int | None = Field(default=None, ge=-1000, le=1000)
    service_tier: str | None = None
    session_id: str | None = Field(default=None, min_length=1, max_length=128)
    deadline_seconds: float | None = Field(default=None, gt=0, le=86400)
    # Another name of deadline_seconds.
    timeout: float | None = Field(default=None, gt=0, le=86400)
    truncate: Literal["head", "middle"] | None = None


class ChatMessage(Body):
    """One message; content is text or a list of parts."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], StopAtFirst()] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], StopAtFirst()] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None


class CompletionBody(SamplingBody):
    """POST /v1/completions."""

    # str, list of str, token ids, or list of token ids: checked in `prompts`
    prompt: Annotated[Any, WithJsonSchema(_PROMPT)]
    logprobs: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None


class EmbeddingsBody(Body):
    """POST /v1/embeddings."""

    model: str | None = None
    # str, list of str, token ids, or list of token ids: checked in `prompts`
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1)
    pooling: Literal["mean", "last"] | None = None
    add_special_tokens: bool | None = None
    priority: int | None = Field(default=None, ge=-1000, le=1000)
    deadline_seconds: float | None = Field(default=None, gt=0, le=86400)
    timeout: float | None = Field(default=None, gt=0, le=86400)


class TokenizeBody(Body):
    """POST /tokenize: a prompt, or messages as for a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], StopAtFirst()] | None = Field(default=None, min_length=1)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], StopAtFirst()] | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: TokenIds


class SplitBody(Body):
    """POST /v1/split: a document, and how long its pieces may be."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    text: str
    max_tokens: int
    overlap_tokens: int = 0


class MemoryBody(Body):
    """POST /admin/memory: the new budget of the whole process tree, as text such as "3GiB" or in bytes."""

    memory: str | int


class ReportBody(Body):
    """POST /admin/memory/report: `trace` true follows Python's allocations from now on, false ends that."""

    trace: bool | None = None


class ProfileBody(Body):
    """POST /admin/profile: for how long stacks are sampled, and how often a second."""

    seconds: float = Field(default=10.0, ge=0.1, le=60.0)
    rate_hz: int = Field(default=100, ge=1, le=200)
