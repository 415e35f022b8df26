"""langchain-openai as a client: LangChain's own integration suites against the server.

What a capable model would say is said by a small engine, from the very prompt that the chat template rendered: asked
with tools it calls one, with the number or the quoted words of the question as arguments; bound to a schema it writes
an instance. All else is the real server, over HTTP. Tests of images, files, audio and recorded answers skip themselves:
the server takes text.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, ClassVar

import httpx
import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests

from openautoglm.engine.client import GenerationRequest
from openautoglm.spec.constraint import ConstraintKind
from openautoglm.text.template import ChatTemplate
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server
from tests.serve.small_engine import CACHED_TOKENS

TEMPLATE = '{{ {"messages": messages, "tools": tools or []} | tojson }}{# <tool_call> #}'
QUESTION_WORDS = re.compile(r"'([^']+)'|San Francisco, CA|Pirate")


def capable(request: GenerationRequest, prompt: str) -> str:
    """Say what a model would that understood the prompt."""
    if request.pooling is not None:
        return ""
    constraint = request.sampling.constraint
    if constraint is not None and constraint.kind is ConstraintKind.JSON_SCHEMA:
        schema = json.loads(constraint.text)
        return json.dumps(instance(schema, "cats")) if "properties" in schema else '{"setup": "a", "punchline": "b"}'
    asked = json.loads(prompt)
    last, tools = asked["messages"][-1], asked["tools"]
    if not tools or (constraint is None and last["role"] == "tool"):
        return "Hello, human."
    tools = [one["function"] for one in tools]
    if constraint is not None:
        tools = [tool for tool in tools if tool["name"] in constraint.text]
    words = last["content"] if isinstance(last["content"], str) else last["content"][0]["text"]
    call = {"name": tools[0]["name"], "arguments": instance(tools[0]["parameters"], words)}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def instance(schema: Mapping[str, Any], words: str) -> Any:
    """Return a value of a schema, with the words or the number that somebody asked for."""
    if schema.get("type") == "object":
        return {name: instance(one, words) for name, one in schema.get("properties", {}).items()}
    if schema.get("type") == "integer":
        number = re.search(r"\d+", words)
        return int(number[0]) if number else 1
    found = QUESTION_WORDS.search(words)
    return (found[1] or found[0]) if found else words


@pytest.fixture(scope="module")
def langchain_server(tokenizer: Tokenizer) -> Iterator[Live]:
    with live_server(tokenizer, template=ChatTemplate({"default": TEMPLATE}), context_tokens=8192) as live:
        live.engine.answer = capable
        yield live


class Clients:
    """What a model of LangChain's connects with: clients of its own, which are closed with the test."""

    parameters: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    async def connect(self, langchain_server: Live) -> AsyncIterator[None]:
        with httpx.Client() as client:
            async with httpx.AsyncClient() as async_client:
                self.parameters.update(
                    model="small", base_url=f"{langchain_server.url}/v1", api_key="EMPTY", max_retries=0,
                    http_client=client, http_async_client=async_client,
                )  # fmt: skip
                yield


# Of the client's own making: how it keeps a parsed answer, and that it takes another way for old schemas.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings", "ignore:Received a Pydantic BaseModel V1 schema")
class TestChatModel(Clients, ChatModelIntegrationTests):
    """The suite of chat models."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # With addresses other than OpenAI's it does not ask for the usage of streams by itself.
        return {**self.parameters, "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "org/alias"


class TestEmbeddings(Clients, EmbeddingsIntegrationTests):
    """The suite of embeddings."""

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # Else the client counts tokens with a vocabulary of OpenAI's, which it would fetch.
        return {**self.parameters, "check_embedding_ctx_length": False}


class TestAnswers(Clients):
    """What the suites leave open."""

    def test_cached_tokens_are_told_whole_and_streamed(self) -> None:
        model = ChatOpenAI(stream_usage=True, **self.parameters)
        whole = model.invoke("Hello")
        chunks = list(model.stream("Hello"))
        told = [whole.usage_metadata, *(chunk.usage_metadata for chunk in chunks if chunk.usage_metadata)]
        assert len(told) == 2
        assert told[0] == told[1]
        assert told[0] is not None
        assert told[0]["input_token_details"]["cache_read"] == CACHED_TOKENS

    async def test_eight_at_once(self) -> None:
        model = ChatOpenAI(**self.parameters)
        assert [message.text for message in await model.abatch(["Hello"] * 8)] == ["Hello, human."] * 8
