"""No address in a request is ever asked: not as an image, a file, a schema or a tool, however loopback is spelt."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.serve.live import Live

# What resolvers, libraries and browsers take for this machine.
HOSTS = (
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "0",
    "0.0.0.0",
    "127.000.000.001", "127.0.0.1.", "localhost", "LOCALHOST", "localhost.", "localhost.localdomain", "[::1]", "[::]",
    "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "①②⑦.⓪.⓪.①", "127。0。0。1", "127%2e0%2e0%2e1",
    "user@127.0.0.1", "127.0.0.1#@example.com", "example.com@127.0.0.1", "127.127.127.127", "0x7f.1", "%6c%6f%63alhost",
)  # fmt: skip


@pytest.fixture(scope="module")
def trap() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def bodies(url: str) -> list[tuple[str, object]]:
    chat = "/v1/chat/completions"

    def part(kind: str, value: object) -> object:
        return {"messages": [{"role": "user", "content": [{"type": kind, kind: value}]}]}

    message = {"role": "user", "content": url}
    return [
        (chat, part("image_url", {"url": url})),
        (chat, part("video_url", {"url": url})),
        (chat, part("audio_url", {"url": url})),
        (chat, part("input_audio", {"data": url, "format": "wav"})),
        (chat, part("file", {"file_data": url, "file_id": url})),
        (chat, {"messages": [message], "max_tokens": 2}),
        (chat, {"messages": [message], "max_tokens": 2, "web_search_options": {"url": url}, "metadata": {"url": url}}),
        (chat, {"messages": [message], "max_tokens": 2, "chat_template": "{% include '" + url + "' %}"}),
        (chat, {"messages": [message], "max_tokens": 2, "chat_template_kwargs": {"documents": [{"url": url}]}}),
        (
            chat,
            {
                "messages": [message],
                "max_tokens": 2,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}},
            },
        ),
        (chat, {"messages": [message], "model": url}),
        ("/v1/completions", {"prompt": url, "max_tokens": 2, "suffix": url}),
        ("/tokenize", {"prompt": url}),
    ]


def test_nobody_is_asked(server: Live, trap: socket.socket) -> None:
    port = trap.getsockname()[1]
    for host in HOSTS:
        for path, body in bodies(f"http://{host}:{port}/x"):
            assert server.post(path, body).status_code < 500, (host, body)
    with pytest.raises(BlockingIOError):
        trap.accept()
    # The trap works: whoever asks is noticed.
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        trap.accept()[0].close()


@pytest.mark.parametrize(
    "scheme", ["file:///etc/hostname", "gopher://127.0.0.1/", "data:text/plain,x", "ftp://127.0.0.1/"]
)
def test_no_scheme_is_read(server: Live, scheme: str) -> None:
    for path, body in bodies(scheme):
        answer = server.post(path, body)
        assert answer.status_code < 500
        assert "root:" not in answer.text
