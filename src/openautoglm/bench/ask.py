"""One request of a load test: sent, its stream read to the end, and what came of it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

from openautoglm.bench.connections import Connections
from openautoglm.bench.endpoint import Endpoint, random_prompt
from openautoglm.bench.outcome import Outcome
from openautoglm.bench.patience import Patience
from openautoglm.bench.server_sent import EventReader
from openautoglm.errors import LoadTestError
from openautoglm.spec.trace import TraceRequest

MAX_REFUSAL_BYTES = 64 << 10
MAX_MESSAGE_CHARACTERS = 300
_END = b"[DONE]"


class Asker:
    """Sends the requests of one run, whose clock begins at `begin`."""

    def __init__(
        self, connections: Connections, endpoint: Endpoint, patience: Patience, *, seed: int, begin: float
    ) -> None:
        self._connections, self._endpoint, self._patience = connections, endpoint, patience
        self._seed, self._begin = seed, begin

    def now(self) -> float:
        """Return the seconds since the run began."""
        return time.perf_counter() - self._begin

    async def ask(self, index: int, request: TraceRequest, *, due_seconds: float) -> Outcome:
        """Send a request and read its answer; whatever goes wrong is in the outcome."""
        num_words = self._endpoint.size.words(request.prompt_tokens)
        # Made before the clock is looked at: it is the client's work, not the server's.
        body = msgspec.json.encode(
            self._endpoint.body(request, random_prompt(num_words, seed=self._seed * 1_000_003 + index))
        )
        outcome = Outcome(index=index, request=request, due_seconds=due_seconds, sent_seconds=self.now())
        try:
            async with asyncio.timeout(self._patience.answer_seconds):
                async with self._connections.lend() as client:
                    await self._send(client, body, outcome)
        except (TimeoutError, httpx.HTTPError, httpx.StreamError, LoadTestError) as error:
            outcome.error, outcome.message = describe_failure(error)
        outcome.end_seconds = self.now()
        return outcome

    async def _send(self, client: httpx.AsyncClient, body: bytes, outcome: Outcome) -> None:
        headers = {"Content-Type": "application/json"}
        async with client.stream("POST", self._endpoint.address, content=body, headers=headers) as response:
            outcome.request_id = response.headers.get("x-request-id")
            if response.status_code != 200:
                await _read_refusal(response, outcome)
                return
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise LoadTestError(f"the answer is {kind or 'of no type'} where a stream of events was asked for")
            await self._read_stream(response, outcome)

    async def _read_stream(self, response: httpx.Response, outcome: Outcome) -> None:
        reader, ended = EventReader(), False
        async for data in response.aiter_bytes():
            for event in reader.push(data):
                if event == _END:
                    ended = True
                    continue
                try:
                    self._take_event(_decode(event), outcome)
                except (AttributeError, KeyError, TypeError, ValueError) as error:
                    raise LoadTestError(f"an event of the stream is not of the API's shape: {error}") from error
                if outcome.error is not None:
                    return
        if not ended:
            outcome.error, outcome.message = "cut_off", "the stream ended without [DONE]"

    def _take_event(self, event: Mapping[str, Any], outcome: Outcome) -> None:
        error = event.get("error")
        if error is not None:
            outcome.error, outcome.message = "stream_" + _error_name(error), _error_message(error)
            return
        outcome.request_id = event.get("id") or outcome.request_id
        usage = event.get("usage")
        if isinstance(usage, dict):
            outcome.prompt_tokens = int(usage["prompt_tokens"])
            outcome.output_tokens = int(usage["completion_tokens"])
        for choice in event.get("choices") or ():
            outcome.finish_reason = choice.get("finish_reason") or outcome.finish_reason
            delta = choice.get("delta") or {}
            if choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"):
                outcome.piece_seconds.append(self.now())


async def _read_refusal(response: httpx.Response, outcome: Outcome) -> None:
    data = b""
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > MAX_REFUSAL_BYTES:
            break
    outcome.error, outcome.message = refusal(response.status_code, data)
    retry_after = response.headers.get("retry-after", "")
    outcome.retry_after_seconds = float(retry_after) if retry_after.isdecimal() else None


def refusal(status: int, data: bytes) -> tuple[str, str]:
    """Return the short name and the message of a refusal, whose body may be anything."""
    try:
        error = msgspec.json.decode(data).get("error")
    except (msgspec.MsgspecError, AttributeError, UnicodeError):
        error = None
    if error is None:
        return f"http_{status}", data[:MAX_MESSAGE_CHARACTERS].decode("utf-8", "replace")
    return f"http_{status}_{_error_name(error)}", _error_message(error)


def describe_failure(error: Exception) -> tuple[str, str]:
    """Return the short name and the message of what kept an answer from coming."""
    message = str(error)[:MAX_MESSAGE_CHARACTERS] or type(error).__name__
    if isinstance(error, httpx.ConnectTimeout):
        return "connect_timeout", message
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "timeout", message
    if isinstance(error, httpx.ConnectError):
        return "tls" if isinstance(error.__cause__, ssl.SSLError) else "connect", message
    if isinstance(error, httpx.NetworkError | httpx.RemoteProtocolError):
        return "cut_off", message
    return "bad_answer", message


def _decode(event: bytes) -> Mapping[str, Any]:
    try:
        value = msgspec.json.decode(event)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise LoadTestError(f"an event of the stream is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadTestError("an event of the stream is no JSON object")
    return value


def _error_name(error: object) -> str:
    """Return a short name for an error of the API: its type, as far as it is one word."""
    name = (error.get("code") or error.get("type")) if isinstance(error, dict) else None
    text = name if isinstance(name, str) else "error"
    return "".join(letter if letter.isalnum() else "_" for letter in text[:40])


def _error_message(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:MAX_MESSAGE_CHARACTERS]
