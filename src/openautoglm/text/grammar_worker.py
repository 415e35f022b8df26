"""The child that first compiles unknown grammars: run as a program, never imported.

A grammar comes from a client and is hostile: compiling it can take any time and memory, and abort the process. This
process holds the vocabulary and compiles nothing itself; every grammar is tried in a fork of it, under limits of
processor time and memory that the parent sets in the first frame. Frames on standard input and output are JSON behind a
length of four bytes, big-endian. It stands by itself (standard library and llguidance) to start fast.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

_LENGTH = struct.Struct(">I")
_MAX_MESSAGE_CHARS = 300
_READ_BYTES = 1 << 16
# What the library says where one of its own limits ended it; everything else is a fault of the grammar's text.
_LIMIT_WORDS = ("fuel", "too many", "too big", "too large", "too deep", "exceed", "too complex", "TooComplex", "limit")


class _Vocabulary:
    """The token table as llguidance asks for it."""

    def __init__(self, frame: Mapping[str, Any]) -> None:
        self.tokens = [token.encode("latin-1") for token in frame["tokens"]]
        self.special_token_ids = frame["special"]
        self.eos_token_id = frame["eos"][0]
        self.bos_token_id = None
        self._ids = {token: index for index, token in enumerate(self.tokens) if token}
        self._longest = max(map(len, self.tokens), default=0)

    def __call__(self, text: bytes | str) -> list[int]:
        """Cut text into the longest tokens: only how it is cut differs from the real tokenizer."""
        data = text.encode("utf-8") if isinstance(text, str) else text
        found: list[int] = []
        while data:
            size = next((n for n in range(min(self._longest, len(data)), 0, -1) if data[:n] in self._ids), 0)
            if not size:
                break
            found.append(self._ids[data[:size]])
            data = data[size:]
        return found


class Worker:
    """Answers checks until its input ends, which is also how it dies with its parent."""

    def __init__(self, frame: Mapping[str, Any]) -> None:
        vocabulary = _Vocabulary(frame)
        self._tokenizer = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=frame["eos"], slices=[])
        self._num_words = (len(vocabulary.tokens) + 31) // 32
        self._cpu_seconds: float = frame["cpu_seconds"]
        self._wall_seconds: float = frame["wall_seconds"]
        self._memory_bytes: int = frame["memory_bytes"]
        self._mask_seconds: float = frame["mask_seconds"]
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Try a grammar in a fork; what ends the fork is an answer too."""
        source, sink = os.pipe()
        fork = os.fork()
        if fork == 0:
            self._run(sink, request)
        os.close(sink)
        reply = _read_until(source, time.monotonic() + self._wall_seconds)
        os.close(source)
        os.kill(fork, signal.SIGKILL)
        _, status = os.waitpid(fork, 0)
        if reply is None:
            return {"error": "wall", "message": ""}
        if reply:
            answer: dict[str, Any] = json.loads(reply)
            return answer
        return {"error": "cpu" if os.WTERMSIG(status) == signal.SIGPROF else "memory", "message": ""}

    def _run(self, sink: int, request: Mapping[str, Any]) -> None:
        """Compile and report, and end this process, however that goes."""
        try:
            most_bytes = _status_bytes("VmData") + self._memory_bytes
            resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, self._cpu_seconds)
            answer = self._try(request)
        except MemoryError:
            answer = {"error": "memory", "message": ""}
        except Exception as error:  # noqa: BLE001  whatever a grammar leads to, the parent gets it as a message
            answer = {"error": "invalid", "message": f"{type(error).__name__}: {error}"[:_MAX_MESSAGE_CHARS]}
        os.write(sink, json.dumps(answer).encode("ascii"))
        os._exit(0)

    def _try(self, request: Mapping[str, Any]) -> dict[str, Any]:
        before_bytes = _status_bytes("VmRSS")
        limits = LLParserLimits(**request["limits"])
        matcher = LLMatcher(self._tokenizer, request["grammar"], log_level=0, limits=limits)
        if not matcher.is_error():
            slow = self._walk(matcher, request["probe_tokens"])
            if slow is not None:
                return {"error": "slow", "message": f"{slow * 1000:.0f}"}
        if matcher.is_error():
            message = matcher.get_error()
            kind = "limit" if any(word in message for word in _LIMIT_WORDS) else "invalid"
            return {"error": kind, "message": _short(message)}
        # Pages that the fork shares with its parent are resident in both: growth is what was taken anew.
        return {"num_bytes": max(0, _status_bytes("VmHWM") - before_bytes)}

    def _walk(self, matcher: LLMatcher, num_tokens: int) -> float | None:
        """Follow the grammar for some tokens; return the seconds of a mask that took too long, None if none did."""
        draw = random.Random(0)  # noqa: S311  any walk will do
        mask = (ctypes.c_uint32 * self._num_words)()
        for _ in range(num_tokens):
            begin = time.process_time()
            matcher.unsafe_compute_mask_ptr(ctypes.addressof(mask), ctypes.sizeof(mask))
            seconds = time.process_time() - begin
            if seconds > self._mask_seconds:
                return seconds
            if matcher.is_error() or matcher.is_stopped():
                return None
            words = [index for index, word in enumerate(mask) if word]
            if not words:
                return None
            index = draw.choice(words)
            token = index * 32 + draw.choice([bit for bit in range(32) if mask[index] >> bit & 1])
            if not matcher.consume_token(token):
                return None
        return None


def _short(message: str) -> str:
    """Return the first line, without the marks of a message that was shortened."""
    line = message.replace("<non-verbose/>", "").strip().splitlines()[0:1]
    text = line[0] if line else "no reason given"
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[:_MAX_MESSAGE_CHARS] + "…"


def _status_bytes(name: str) -> int:
    """Return a size from proc(5)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _read_until(descriptor: int, deadline: float) -> bytes | None:
    """Read to the end of the stream; None if that does not come by the deadline."""
    pieces: list[bytes] = []
    while True:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        piece = os.read(descriptor, _READ_BYTES)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def read_frame(stream: BinaryIO) -> Any:  # noqa: ANN401
    """Read one frame; None at the end of the stream."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    return json.loads(stream.read(_LENGTH.unpack(header)[0]))


def write_frame(stream: BinaryIO, value: object) -> None:
    """Write one frame."""
    data = json.dumps(value).encode("ascii")
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def main() -> None:
    """Serve frames."""
    # Ctrl-C in a terminal reaches the whole group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    first_frame = read_frame(source)
    if first_frame is None:
        return
    worker = Worker(first_frame)
    write_frame(sink, {"ready": True})
    while (request := read_frame(source)) is not None:
        write_frame(sink, worker.answer(request))


if __name__ == "__main__":
    main()
