"""The port: held while a model loads, free at once after the end."""

from __future__ import annotations

import socket

import pytest

from openautoglm.errors import ConfigError
from openautoglm.serve.listener import listen, open_listener
from openautoglm.serve.main import _default_names


def test_the_port_is_held_before_anybody_is_served() -> None:
    with open_listener("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}: Address already in use: choose another --port"):
            open_listener("127.0.0.1", port)
        # Nobody is let wait by a server that does not serve yet.
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0
        listen(first)
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        with pytest.raises(ConfigError, match="Address already in use"):
            open_listener("127.0.0.1", port)


def test_the_port_is_free_again_at_once() -> None:
    """Connections that the server closed linger in the kernel; the next server gets the port all the same."""
    held = 0
    for _ in range(2):
        listener = open_listener("127.0.0.1", held)
        listen(listener)
        held = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", held), timeout=5) as client:
            accepted, _ = listener.accept()
            accepted.close()
            assert client.recv(1) == b""
        listener.close()


def test_a_port_that_was_taken_meanwhile_is_a_clear_error() -> None:
    with open_listener("127.0.0.1", 0) as first, socket.socket() as other:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(first.getsockname())
        other.listen()
        with pytest.raises(ConfigError, match="Address already in use: choose another --port"):
            listen(first)


@pytest.mark.parametrize(
    ("given", "model", "names"),
    [
        ("demo", "demo", ("demo",)),
        ("models/a", "./models/a", ("models/a", "./models/a")),
        ("./models/a", "./models/a", ("models/a", "./models/a")),
        ("/models/a", "/models/a", ("/models/a",)),
        ("org/name:int4@v2", "org/name@v2", ("org/name@v2", "org/name:int4@v2")),
    ],
)
def test_a_model_answers_to_the_name_that_was_typed(given: str, model: str, names: tuple[str, ...]) -> None:
    assert _default_names(given, model) == names
