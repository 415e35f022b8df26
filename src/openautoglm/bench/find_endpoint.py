"""Looking at a server before it is measured: whether it is there, what it serves, how it counts tokens."""

from __future__ import annotations

from dataclasses import replace

import httpx
import msgspec

from openautoglm.bench.ask import describe_failure, refusal
from openautoglm.bench.endpoint import Endpoint, PromptSize, random_prompt
from openautoglm.bench.patience import Patience
from openautoglm.errors import LoadTestError
from openautoglm.spec.trace import TraceRequest

_FEW_WORDS, _MORE_WORDS = 8, 72
_MAX_ANSWER_BYTES = 4 << 20


def find_endpoint(endpoint: Endpoint, patience: Patience) -> Endpoint:
    """Return the endpoint with its model, if none was named, and with the size of its prompts, by three requests.

    Raises `LoadTestError` for a server that is not there, refuses, has no such model, or is none of OpenAI's API.
    """
    timeout = httpx.Timeout(patience.answer_seconds, connect=patience.connect_seconds)
    try:
        with httpx.Client(headers=endpoint.headers(), timeout=timeout) as client:
            names = _models(client, endpoint)
            if not endpoint.model:
                if not names:
                    raise LoadTestError(f"{endpoint.url}/models names no model: say which with --model")
                endpoint = replace(endpoint, model=names[0])
            elif names and endpoint.model not in names:
                raise LoadTestError(f"{endpoint.url} has no model {endpoint.model!r}: it has {', '.join(names[:8])}")
            few = _prompt_tokens(client, endpoint, _FEW_WORDS)
            more = _prompt_tokens(client, endpoint, _MORE_WORDS)
    except httpx.HTTPError as error:
        kind, message = describe_failure(error)
        hint = "is a server running there?" if kind.startswith("connect") else "is it the address of the API?"
        raise LoadTestError(f"{endpoint.url} does not answer ({kind}: {message}): {hint}") from error
    if few is None or more is None or more <= few:
        return endpoint
    per_word = (more - few) / (_MORE_WORDS - _FEW_WORDS)
    return replace(endpoint, size=PromptSize(base_tokens=few - _FEW_WORDS * per_word, tokens_per_word=per_word))


def _models(client: httpx.Client, endpoint: Endpoint) -> list[str]:
    """Return the names of the server's models; none where it does not list them."""
    response = client.get(f"{endpoint.url}/models")
    if response.status_code in (404, 405):
        return []
    answer = _answer(response, endpoint)
    models = answer.get("data")
    if not isinstance(models, list):
        raise LoadTestError(f"{endpoint.url}/models is no list of models: is it the address of OpenAI's API?")
    return [str(model.get("id")) for model in models if isinstance(model, dict)]


def _prompt_tokens(client: httpx.Client, endpoint: Endpoint, num_words: int) -> int | None:
    """Return how many tokens the server counts in a prompt of so many words; None where it does not say."""
    one = TraceRequest(arrival_seconds=0.0, prompt_tokens=num_words, output_tokens=1)
    body = endpoint.body(one, random_prompt(num_words, seed=-num_words)) | {"stream": False, "max_tokens": 1}
    del body["stream_options"]
    answer = _answer(client.post(endpoint.address, json=body), endpoint)
    if not isinstance(answer.get("choices"), list):
        raise LoadTestError(f"{endpoint.address} gave an answer without choices: is it the address of OpenAI's API?")
    usage = answer.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else None


def _answer(response: httpx.Response, endpoint: Endpoint) -> dict[str, object]:
    if response.status_code != 200:
        kind, message = refusal(response.status_code, response.content[:_MAX_ANSWER_BYTES])
        hint = ": send a key with --api-key" if response.status_code in (401, 403) and not endpoint.api_key else ""
        raise LoadTestError(f"{response.request.url} refuses ({kind}): {message}{hint}")
    try:
        answer = msgspec.json.decode(response.content)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise LoadTestError(f"{response.request.url} does not answer with JSON ({error})") from error
    if not isinstance(answer, dict):
        raise LoadTestError(f"{response.request.url} does not answer with a JSON object")
    return answer
