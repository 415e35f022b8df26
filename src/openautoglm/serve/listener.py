"""The listening socket."""

from __future__ import annotations

import socket

from openautoglm.errors import ConfigError
from openautoglm.units import KIB

# What the kernel may hold for a client that reads slowly; by itself it would take megabytes for each.
_SEND_BUFFER_BYTES = 64 * KIB


def open_listener(host: str, port: int) -> socket.socket:
    """Return a bound socket for a server to listen on (port 0: any free one).

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
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}: choose another --port, or stop what "
            "uses it"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address that clients use."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if listener.family == socket.AF_INET6 else f"http://{host}:{port}"
