"""Reading a remote file from a position, through the hub client's own session (tokens, proxies, offline mode)."""

from __future__ import annotations

from collections.abc import Generator
from http import HTTPStatus

from openautoglm.units import KIB

# What a broken connection loses at most.
PIECE_BYTES = 128 * KIB


def stream_from(url: str, begin: int, end: int | None = None) -> Generator[bytes, None, None]:
    """Yield bytes [begin, end) of a remote file, or to its end, in pieces of at most 128 KiB.

    A server that ignores ranges is read from 0 and skipped; one that sends more than was asked is cut off. Raises the
    client's errors: call within `hub_errors`, and close the iterator when it is left early.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
        http_stream_backoff,
    )

    wanted = f"bytes={begin}-{'' if end is None else end - 1}"
    # Compressed bytes would have positions of their own.
    headers = {**build_hf_headers(), "Range": wanted, "Accept-Encoding": "identity"}
    with http_stream_backoff(
        "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, retry_on_exceptions=()
    ) as response:
        hf_raise_for_status(response)
        position = begin if response.status_code == HTTPStatus.PARTIAL_CONTENT else 0
        for data in response.iter_bytes(chunk_size=PIECE_BYTES):
            piece = data[max(0, begin - position) : None if end is None else max(0, end - position)]
            position += len(data)
            if piece:
                yield piece
            if end is not None and position >= end:
                return
