"""Raw connections: heads and bodies that trickle, stall or are too large, and TLS."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from openautoglm.errors import ConfigError
from openautoglm.serve.web import Tls
from openautoglm.text.tokenizer import Tokenizer
from tests.serve.live import Live, live_server

HEADER_SECONDS, BODY_SECONDS, IDLE_SECONDS = 0.6, 0.8, 1.0
DATA = Path(__file__).parents[1] / "data" / "tls"
CERTIFICATE = Tls(certificate=DATA / "chain.pem", key=DATA / "key.pem")
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def hasty(tokenizer: Tokenizer) -> Iterator[Live]:
    """A server with little patience."""
    with live_server(
        tokenizer, header_seconds=HEADER_SECONDS, body_seconds=BODY_SECONDS, idle_seconds=IDLE_SECONDS
    ) as live:
        yield live


def trickle(connection: socket.socket, data: bytes, pause_seconds: float) -> threading.Thread:
    """Send byte by byte until nobody takes it."""

    def send() -> None:
        try:
            for index in range(len(data)):
                connection.sendall(data[index : index + 1])
                time.sleep(pause_seconds)
        except OSError:
            pass

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def read_all(connection: socket.socket) -> tuple[bytes, float]:
    """Read until the other side hangs up; return what came, and how long it took."""
    begin = time.monotonic()
    connection.settimeout(20)
    pieces = []
    try:
        while piece := connection.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces), time.monotonic() - begin


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def num_requests(server: Live) -> int:
    return server.context.drain.num_entered


def test_a_head_that_trickles_never_reaches_the_application(hasty: Live) -> None:
    before = num_requests(hasty)
    with socket.create_connection(("127.0.0.1", hasty.port)) as connection:
        sender = trickle(connection, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100, 0.02)
        answer, seconds = read_all(connection)
    sender.join()
    assert error_of(answer) == (408, "request_timeout")
    assert HEADER_SECONDS * 0.9 < seconds < HEADER_SECONDS + 1
    assert num_requests(hasty) == before


@pytest.mark.parametrize("data", [b"\r\n" * 1000, b"G" * 1000, b"GET / HTTP/1.1\r\nA: " + b"a" * 1000])
def test_no_byte_starts_the_clock_again(hasty: Live, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port)) as connection:
        sender = trickle(connection, data, 0.01)
        answer, seconds = read_all(connection)
    sender.join()
    assert error_of(answer)[0] in (400, 408)
    assert seconds < HEADER_SECONDS + 1


def test_the_second_head_of_a_connection_has_its_deadline_too(hasty: Live) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in connection.recv(65536)
        time.sleep(HEADER_SECONDS * 0.8)
        sender = trickle(connection, b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 100, 0.02)
        answer, seconds = read_all(connection)
    sender.join()
    assert error_of(answer) == (408, "request_timeout")
    assert HEADER_SECONDS * 0.9 < seconds < HEADER_SECONDS + 1


def test_a_head_that_came_along_with_a_request_has_one(hasty: Live) -> None:
    """Bytes that were pipelined behind a request wait for it, and are on the clock from then on."""
    with socket.create_connection(("127.0.0.1", hasty.port)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HT")
        answer, seconds = read_all(connection)
    assert b"200 OK" in answer
    assert b"408 Request Timeout" in answer
    assert seconds < HEADER_SECONDS + 1


def test_requests_one_after_the_other_are_on_no_clock(hasty: Live) -> None:
    with httpx.Client(base_url=hasty.url) as client:
        begin = time.monotonic()
        while time.monotonic() - begin < 2.5 * HEADER_SECONDS:
            assert client.get("/health").status_code == 200
            time.sleep(0.05)


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["never", "after one"])
def test_an_idle_connection_ends(hasty: Live, first: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port)) as connection:
        connection.sendall(first)
        answer, seconds = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200") if first else not answer
    assert IDLE_SECONDS * 0.9 < seconds < IDLE_SECONDS + 1


def test_a_long_answer_is_on_no_clock(hasty: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    # Half as long again as the longest clock, whole and as a stream at once.
    monkeypatch.setattr(hasty.engine, "seconds_before_first", 1.5 * max(HEADER_SECONDS, BODY_SECONDS, IDLE_SECONDS))
    with ThreadPoolExecutor(1) as pool:
        streamed = pool.submit(hasty.chat, stream=True)
        assert hasty.chat().status_code == 200
        assert streamed.result().text.endswith("data: [DONE]\n\n")


def test_a_body_that_trickles_is_answered_and_dropped(hasty: Live) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port)) as connection:
        connection.sendall(POST + b"Content-Length: 5000\r\n\r\n")
        sender = trickle(connection, b" " * 5000, 0.02)
        answer, seconds = read_all(connection)
    sender.join()
    assert error_of(answer) == (408, "request_timeout")
    # The answer comes at the deadline; what still trickles has the same time again.
    assert BODY_SECONDS * 0.9 < seconds < 2 * BODY_SECONDS + 1


@pytest.mark.parametrize(
    "head",
    [
        POST.replace(b"completions", b"nothing") + b"Content-Length: 1000000\r\n\r\n",
        POST.replace(b"application/json", b"text/plain") + b"Content-Length: 1000\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["no route", "no JSON", "chunked", "health"],
)
def test_the_rest_of_a_body_that_nobody_reads_is_not_waited_for(hasty: Live, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port)) as connection:
        connection.sendall(head)
        sender = trickle(connection, b"1\r\nx\r\n" * 1000, 0.02)
        answer, seconds = read_all(connection)
    sender.join()
    assert answer.startswith(b"HTTP/1.1 ")
    assert seconds < 2 * BODY_SECONDS + 1


def test_a_head_that_is_too_large_is_refused(hasty: Live) -> None:
    for head in (b"GET /" + b"a" * 40_000, b"GET / HTTP/1.1\r\n" + b"X-Filler: abcdefghij\r\n" * 2000):
        with socket.create_connection(("127.0.0.1", hasty.port)) as connection:
            connection.sendall(head)
            answer, _ = read_all(connection)
        assert error_of(answer) == (400, "malformed_http")
    assert hasty.get("/health", headers={"X-Large": "a" * 20_000}).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/x.y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA\x00b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(hasty: Live, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port)) as connection:
        connection.sendall(data)
        answer, _ = read_all(connection)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert error_of(answer)[1] == "malformed_http"
    hasty.still_answers()


def test_many_that_trickle_slow_nobody(hasty: Live) -> None:
    connections = [socket.create_connection(("127.0.0.1", hasty.port)) for _ in range(200)]
    try:
        for connection in connections:
            connection.sendall(b"GET /health HTTP/1.1\r\nX: ")
        begin = time.monotonic()
        for _ in range(5):
            hasty.still_answers()
        assert time.monotonic() - begin < 5
        for connection in connections:
            assert error_of(read_all(connection)[0]) == (408, "request_timeout")
    finally:
        for connection in connections:
            connection.close()


def test_tls(tokenizer: Tokenizer) -> None:
    with live_server(tokenizer, tls=CERTIFICATE, header_seconds=HEADER_SECONDS) as server:
        trusting = ssl.create_default_context(cafile=str(CERTIFICATE.certificate))
        body = {"messages": [{"role": "user", "content": "hello"}]}
        url = f"https://localhost:{server.port}"
        with httpx.Client(verify=trusting) as client:
            answer = client.post(f"{url}/v1/chat/completions", json=body)
        assert answer.json()["choices"][0]["message"]["content"] == "0:hello"
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://localhost:{server.port}/health")
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(f"{url}/health", verify=ssl.create_default_context())
        # The deadline of heads holds inside, too.
        plain = socket.create_connection(("127.0.0.1", server.port))
        with trusting.wrap_socket(plain, server_hostname="localhost") as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nX")
            assert error_of(read_all(connection)[0]) == (408, "request_timeout")


def test_files_that_are_no_certificate(tmp_path: Path) -> None:
    CERTIFICATE.check()
    (tmp_path / "junk.pem").write_text("junk")
    assert CERTIFICATE.key is not None
    for tls in (
        Tls(certificate=tmp_path / "missing.pem"),
        Tls(certificate=tmp_path / "junk.pem"),
        Tls(certificate=CERTIFICATE.certificate),
        Tls(certificate=CERTIFICATE.certificate, key=tmp_path / "junk.pem"),
        Tls(certificate=CERTIFICATE.key, key=CERTIFICATE.certificate),
    ):
        with pytest.raises(ConfigError, match=r"TLS cannot use .*\.pem"):
            tls.check()
