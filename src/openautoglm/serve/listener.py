"""The listening socket."""

from __future__ import annotations

import socket

from openautoglm.errors import ConfigError
from openautoglm.units import KIB

# What the kernel may hold for a client that reads slowly; by itself it would take megabytes for each.
_SEND_BUFFER_BYTES = 32 * KIB
_BACKLOG = 2048


def open_listener(host: str, port: int) -> socket.socket:
    """Return a bound socket that `listen` makes ready (port 0: any free one); until then nobody else gets the port.

    Raises `ConfigError` if the address cannot be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}: {error.strerror or error}: check --host") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.bind(address)
        # While a model loads, a second server could otherwise bind the port too, and fail only after its own load.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except OSError as error:
        listener.close()
        raise _taken(host, port, error) from error
    return listener


def listen(listener: socket.socket) -> None:
    """Take connections. Raises `ConfigError` if somebody else has come to hold the port."""
    try:
        # Again, so that connections of a server that has just ended do not keep the next one from its port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.listen(_BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _taken(host, port, error) from error


def _taken(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(
        f"cannot listen on {host} port {port}: {error.strerror or error}: choose another --port, or stop what uses it"
    )


def url_of(listener: socket.socket, *, secure: bool = False) -> str:
    """Return the address that clients use."""
    scheme = "https" if secure else "http"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{scheme}://{host}:{port}"
