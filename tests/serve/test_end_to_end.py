"""`openautoglm serve demo` as its users have it: two processes, a real model, the openai package."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam

from openautoglm.serve.listener import open_listener

QUESTION: ChatCompletionUserMessageParam = {"role": "user", "content": "What does textwrap.dedent do?"}
START_SECONDS = 120


@dataclass
class Server:
    """A server process, its output so far, and its address."""

    process: subprocess.Popen[str]
    url: str
    errors: Path
    directory: Path

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="EMPTY", max_retries=0, timeout=60)

    def chat(self, **fields: object) -> str:
        body = {"messages": [QUESTION], "max_tokens": 24, "temperature": 0, **fields}
        answer = httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        content: str = answer.json()["choices"][0]["message"]["content"]
        return content

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        assert found, name
        return float(found.group(1))

    def children(self) -> dict[str, int]:
        """Process ids of the server's children, by the program that they run."""
        found = {}
        for pid in map(int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()):
            program = Path(f"/proc/{pid}/cmdline").read_text()
            found["template" if "template_worker" in program else "engine"] = pid
        return found


@contextlib.contextmanager
def running(
    directory: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    options: tuple[str, ...] = (),
    port: int = 0,
) -> Iterator[Server]:
    """Start a server, on a free port if none is given, and wait for the address that it prints."""
    errors = directory / "stderr"
    served = ["serve", "demo", "--port", str(port), "--threads", "1"]
    command = [sys.executable, "-m", "openautoglm", *options, *served, *arguments]
    with errors.open("w") as sink:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            env={**os.environ, "TMPDIR": str(directory), **(environment or {})},
        )
    try:
        assert process.stdout is not None
        alarm = threading.Timer(START_SECONDS, process.kill)
        alarm.start()
        line = process.stdout.readline()
        alarm.cancel()
        found = re.search(r"at (https?://\S+)/v1$", line.strip())
        assert found, errors.read_text()
        yield Server(process, found.group(1), errors, directory)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: the engine's socket must fit into 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="oag-") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="oag-") as name, running(Path(name)) as started:
        yield started


def test_the_plan_comes_first_and_the_receipt_after(server: Server) -> None:
    told = server.errors.read_text()
    assert told.startswith("plan for demo")
    assert 0 < told.index("predicted peak") < told.index("receipt for demo")


def test_a_chat_streams_the_same_text_that_comes_whole(server: Server) -> None:
    client = server.client()
    whole = client.chat.completions.create(model="demo", messages=[QUESTION], max_tokens=48, temperature=0)
    text = whole.choices[0].message.content
    assert text
    stream = client.chat.completions.create(
        model="demo",
        messages=[QUESTION],
        max_tokens=48,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    usage = chunks[-1].usage
    assert usage is not None
    assert whole.usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)
    assert whole.system_fingerprint == chunks[0].system_fingerprint


def test_the_same_seed_gives_the_same_text_and_choices_differ(server: Server) -> None:
    client = server.client()

    def texts(seed: int) -> list[str | None]:
        answer = client.chat.completions.create(
            model="demo", messages=[QUESTION], max_tokens=24, temperature=1.0, seed=seed, n=3
        )
        return [choice.message.content for choice in answer.choices]

    first = texts(1)
    assert texts(1) == first
    assert texts(2) != first
    assert len(set(first)) > 1


def test_a_repeated_prompt_is_cached_and_says_the_same(server: Server) -> None:
    client = server.client()
    prompt = "def add(a, b):\n    return a + b\n" * 6

    def ask() -> tuple[str, int]:
        answer = client.completions.create(model="demo", prompt=prompt, max_tokens=16, temperature=0)
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        return answer.choices[0].text, answer.usage.prompt_tokens_details.cached_tokens or 0

    (first, _), (second, cached) = ask(), ask()
    assert second == first
    assert cached > 0


def test_logprobs_are_those_of_the_best_tokens(server: Server) -> None:
    answer = server.client().chat.completions.create(
        model="demo", messages=[QUESTION], max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    for entry in logprobs.content:
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        # Greedy: the chosen token is the best one.
        assert (entry.token, entry.logprob) == (entry.top_logprobs[0].token, values[0])


def test_a_stop_string_ends_the_text_before_it(server: Server) -> None:
    text = server.chat(max_tokens=48)
    stop = text[len(text) // 2 :][:3]
    assert server.chat(max_tokens=48, stop=[stop]) == text[: text.index(stop)]


def test_eight_at_once_say_what_each_says_alone(server: Server) -> None:
    questions = [f"What does function number {index} return?" for index in range(8)]

    def ask(question: str) -> str:
        return server.chat(messages=[{"role": "user", "content": question}])

    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, questions)) == alone


def test_tokens_of_a_chat_are_those_that_are_counted(server: Server) -> None:
    tokens = httpx.post(f"{server.url}/tokenize", json={"messages": [QUESTION]}, timeout=10).json()
    body = {"messages": [QUESTION], "max_tokens": 1}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    assert tokens["count"] == answer["usage"]["prompt_tokens"]


def test_an_overflow_names_the_context(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(model="demo", messages=[QUESTION], max_tokens=100_000)
    assert caught.value.code == "context_length_exceeded"
    assert server.chat()


def test_prompts_are_in_no_log(server: Server) -> None:
    canary = "canary-of-the-prompt-20117"
    server.chat(messages=[{"role": "user", "content": canary}])
    bodies = [
        {"messages": [{"role": "user", "content": canary}], "max_tokens": 100_000},
        {"messages": [{"role": "user", "content": canary}], "temperature": canary},
        {"messages": [{"role": canary, "content": 3}]},
    ]
    for body in bodies:
        assert httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).status_code == 400
    assert canary not in server.errors.read_text()
    assert canary not in httpx.get(f"{server.url}/metrics", timeout=10).text


def test_a_client_that_leaves_frees_its_blocks(server: Server) -> None:
    # The open-ended text of 2,000 tokens takes longer than the test waits for.
    body = {"prompt": "def ", "max_tokens": 2000, "ignore_eos": True, "stream": True, "n": 4}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        for _ in range(20):
            next(lines)
        assert server.metric('openautoglm_kv_blocks{model_name="demo",state="used"}') > 0
    begin = time.monotonic()
    while server.metric('openautoglm_kv_blocks{model_name="demo",state="used"}') > 0:
        assert time.monotonic() - begin < 2
        time.sleep(0.02)
    assert server.metric('vllm:request_success_total{finished_reason="abort",model_name="demo"}') == 4


def test_an_engine_that_dies_ends_its_requests_and_comes_back(directory: Path) -> None:
    with running(directory) as server:
        expected = server.chat()
        body = {"prompt": "def ", "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            os.kill(server.children()["engine"], signal.SIGKILL)
            rest = [line for line in lines if line.startswith("data: ")]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"}, timeout=10)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
        assert int(refused.headers["retry-after"]) > 0
        deadline = time.monotonic() + START_SECONDS
        # The port never goes away.
        while httpx.get(f"{server.url}/health", timeout=10).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert server.chat() == expected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish_and_leaves_nothing(directory: Path, number: signal.Signals) -> None:
    with running(directory) as server:
        server.chat()
        children = server.children()
        assert set(children) == {"engine", "template"}
        lines: list[str] = []
        started = threading.Event()

        def read() -> None:
            body = {"prompt": "def ", "max_tokens": 600, "ignore_eos": True, "stream": True}
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
                for line in response.iter_lines():
                    lines.append(line)
                    started.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(30)
        server.process.send_signal(number)
        assert server.process.wait(60) == 0
        reader.join(10)
    assert "data: [DONE]" in lines
    for pid in children.values():
        assert not Path(f"/proc/{pid}").exists()
    assert [path.name for path in directory.iterdir()] == ["stderr"]


def test_the_key_comes_from_the_environment_and_is_in_no_output(directory: Path) -> None:
    key = "sk-canary-4711"
    with running(directory, "--served-model-name", "mine", environment={"OPENAUTOGLM_API_KEY": key}) as server:
        assert httpx.get(f"{server.url}/v1/models", timeout=10).status_code == 401
        models = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {key}"}, timeout=10)
        assert [model["id"] for model in models.json()["data"]] == ["mine"]
        assert httpx.get(f"{server.url}/health", timeout=10).status_code == 200
    assert key not in (directory / "stderr").read_text()


def test_while_it_loads_the_port_says_to_come_again(directory: Path) -> None:
    with open_listener("127.0.0.1", 0) as chosen:
        port = chosen.getsockname()[1]
    url, statuses, waiting = f"http://127.0.0.1:{port}", [], threading.Event()

    def ask() -> None:
        # From the first connection on nobody is refused, and nobody is left without an answer.
        while not waiting.is_set():
            with contextlib.suppress(httpx.ConnectError):
                statuses.append(httpx.get(f"{url}/health", timeout=30))
                break
        while not waiting.is_set():
            statuses.append(httpx.get(f"{url}/health", timeout=30))
            statuses.append(httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=30))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with running(directory, port=port) as server:
            assert server.chat()
            waiting.set()
            asking.join(60)
    finally:
        waiting.set()
        asking.join(60)
    seen = [(answer.request.url.path, answer.status_code) for answer in statuses]
    loading = statuses[: [status for _, status in seen].index(200)]
    assert {("/health", 503), ("/v1/completions", 503)} == {(one.request.url.path, one.status_code) for one in loading}
    assert {status for _, status in seen[len(loading) :]} == {200}
    for answer in loading:
        if answer.request.url.path == "/health":
            assert answer.json() == {"status": "loading", "live": True, "ready": False, "draining": False}
        else:
            assert (answer.json()["error"]["code"], answer.headers["retry-after"]) == ("loading", "5")


def test_a_load_that_is_ended_leaves_nothing(directory: Path) -> None:
    with open_listener("127.0.0.1", 0) as chosen:
        port = chosen.getsockname()[1]
    with (directory / "stderr").open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "openautoglm", "serve", "demo", "--port", str(port), "--no-cache"],
            stdout=subprocess.DEVNULL, stderr=sink, env={**os.environ, "TMPDIR": str(directory)},
        )  # fmt: skip
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert time.monotonic() < deadline
        with contextlib.suppress(httpx.ConnectError):
            assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=10).status_code == 503
            break
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert [path.name for path in directory.iterdir()] == ["stderr"]


def test_at_the_deadline_of_a_drain_streams_end_with_an_event_and_the_exit_is_0(directory: Path) -> None:
    with running(directory, "--drain-seconds", "1.5") as server:
        url, lines, started = server.url, [], threading.Event()

        def read() -> None:
            body = {"prompt": "def ", "max_tokens": 2000, "ignore_eos": True, "stream": True, "n": 8}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
                for line in response.iter_lines():
                    lines.append(line)
                    started.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert started.wait(30)
        server.process.terminate()
        begin, refusals = time.monotonic(), []
        while server.process.poll() is None:
            # The port stays open until what runs has ended.
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(f"{url}/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=10)
                refusals.append((time.monotonic() - begin, answer))
            time.sleep(0.05)
        assert server.process.returncode == 0
        reader.join(10)
    late = [answer for seconds, answer in refusals if seconds > 0.3]
    assert late
    for answer in late:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")
        assert int(answer.headers["retry-after"]) > 0
    assert max(seconds for seconds, _ in refusals) > 1.2
    data = [line for line in lines if line.startswith("data: ")]
    assert "stopping" in json.loads(data[-1].removeprefix("data: "))["error"]["message"]


def test_keys_and_tls_of_a_running_server(directory: Path) -> None:
    """As an operator has it: keys are made and revoked while the server runs, and nothing goes in clear."""
    file = directory / "keys.json"
    data = Path(__file__).parents[1] / "data" / "tls"
    command = [sys.executable, "-m", "openautoglm", "keys"]

    def key(name: str) -> str:
        create = [*command, "create", name, "--keys-file", str(file)]
        return subprocess.run(create, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    alice = key("alice")
    tls = ("--tls-cert", str(data / "chain.pem"), "--tls-key", str(data / "key.pem"))
    with running(directory, "--host", "0.0.0.0", "--keys-file", str(file), *tls) as server:
        port = server.url.rpartition(":")[2]
        assert server.url.startswith("https://")
        with httpx.Client(
            base_url=f"https://localhost:{port}", verify=ssl.create_default_context(cafile=str(data / "chain.pem"))
        ) as client:

            def status(key: str) -> int:
                return client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

            assert (status(alice), status("oag-wrong")) == (200, 401)
            bob = key("bob")
            subprocess.run([*command, "revoke", "alice", "--keys-file", str(file)], check=True, timeout=60)
            deadline = time.monotonic() + 3
            while (status(alice), status(bob)) != (401, 200):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            # SIGHUP reads the file again, changed or not, and does not end the server.
            again = "the keys were read again"
            before = (directory / "stderr").read_text().count(again)
            server.process.send_signal(signal.SIGHUP)
            deadline = time.monotonic() + 10
            while (directory / "stderr").read_text().count(again) == before:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            assert status(bob) == 200
    told = (directory / "stderr").read_text()
    assert alice not in told
    assert bob not in told


def refused(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "openautoglm", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_SECONDS)


def test_what_cannot_be_served_is_refused_at_once(server: Server) -> None:
    outside = refused("demo", "--host", "0.0.0.0")
    assert outside.returncode == 2
    assert "no API key is set" in outside.stderr
    port = server.url.rpartition(":")[2]
    taken = refused("demo", "--port", port)
    assert taken.returncode == 2
    assert "choose another --port" in taken.stderr
    small = refused("demo", "--memory", "20MiB", "--port", "0")
    assert small.returncode == 3
    assert "Traceback" not in outside.stderr + taken.stderr + small.stderr
