"""The process that tries unknown grammars, as its parent sees it: started on first use, replaced when it had to die."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from openautoglm.errors import EngineError
from openautoglm.log import get_logger
from openautoglm.text.children import child_command, child_environment, describe_exit
from openautoglm.text.frames import read_frame, write_frame
from openautoglm.units import MIB

_START_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_REPLY_BYTES = 1 << 16
# Interpreter and library, and for each entry of the vocabulary its bytes and its place in the trie (measured: 22 MiB,
# and 412 bytes an entry at 151,000).
_BASE_BYTES, _ENTRY_BYTES = 28 * MIB, 512
_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarLimits:
    """What trying one grammar may take.

    Processor time is what a grammar is judged by, so that a busy machine fails none; the wall clock is there for one
    that is stuck. `mask_seconds` is the most processor time for the mask of one token, of the first `probe_tokens`.
    """

    cpu_seconds: float = 1.0
    wall_seconds: float = 20.0
    memory_bytes: int = 192 * MIB
    mask_seconds: float = 0.05
    probe_tokens: int = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class GrammarVocabulary:
    """The bytes of every token (none for a padded id), which of them are marks, and which end a text."""

    tokens: tuple[bytes, ...]
    special_token_ids: tuple[int, ...]
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the child found: None and the bytes that compiling took, or the kind of `error` and a message.

    Kinds are "invalid", and for limits "limit" (one of the parser's), "cpu", "wall", "memory" and "slow" (a mask).
    """

    error: str | None = None
    message: str = ""
    num_bytes: int = 0


class GrammarProcess:
    """One worker; `check` is safe from any thread, one grammar at a time. `vocabulary` is asked for at its start."""

    def __init__(self, vocabulary: Callable[[], GrammarVocabulary], limits: GrammarLimits | None = None) -> None:
        self.limits = limits or GrammarLimits()
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    @staticmethod
    def idle_bytes(vocab_size: int) -> int:
        """Return what the worker takes while it waits."""
        return _BASE_BYTES + vocab_size * _ENTRY_BYTES

    @property
    def pid(self) -> int | None:
        """The worker's process id, None while there is none."""
        return self._process.pid if self._process else None

    def check(self, source: str, limits: Mapping[str, int | bool], *, most_tokens: int) -> Verdict:
        """Try a grammar for `most_tokens` under the parser's `limits`; raise `EngineError` without a process."""
        with self._lock:
            if self._closed:
                raise EngineError("the process that tries grammars was closed")
            probe_tokens = min(most_tokens, self.limits.probe_tokens)
            reply = self._exchange({"grammar": source, "limits": limits, "probe_tokens": probe_tokens})
        if "error" in reply:
            return Verdict(error=str(reply["error"]), message=str(reply["message"]))
        num_bytes = reply["num_bytes"]
        assert isinstance(num_bytes, int)
        return Verdict(num_bytes=num_bytes)

    def close(self) -> None:
        """End the worker; safe to call twice. A check that is under way ends with `EngineError`."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            self._stop()

    def _exchange(self, request: object) -> dict[str, object]:
        if self._process is not None and self._process.poll() is not None:
            # It died while idle (somebody's kill): that is no fault of this grammar.
            _logger.warning("the process that tries grammars was gone (%s): starting another", self._stop())
        try:
            if self._process is None:
                self._start()
            return self._talk(request, self.limits.wall_seconds + _GRACE_SECONDS)
        except (TimeoutError, EOFError, BrokenPipeError, ValueError) as error:
            how = self._stop()
            raise EngineError(f"the process that tries grammars ended ({how})") from error

    def _start(self) -> None:
        vocabulary, limits = self._vocabulary(), self.limits
        self._process = subprocess.Popen(
            child_command("grammar_worker.py"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            bufsize=0,
        )
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        first = {
            "tokens": [token.decode("latin-1") for token in vocabulary.tokens],
            "special": vocabulary.special_token_ids,
            "eos": vocabulary.eos_token_ids,
            "cpu_seconds": limits.cpu_seconds,
            "wall_seconds": limits.wall_seconds,
            "memory_bytes": limits.memory_bytes,
            "mask_seconds": limits.mask_seconds,
        }
        self._talk(first, _START_SECONDS)

    def _talk(self, value: object, seconds: float) -> dict[str, object]:
        process, deadline = self._process, time.monotonic() + seconds
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        write_frame(process.stdin.fileno(), value, deadline)
        return read_frame(process.stdout.fileno(), deadline, max_bytes=_REPLY_BYTES)

    def _stop(self) -> str:
        """Kill and reap the worker; return how it ended."""
        process, self._process = self._process, None
        if process is None:
            return "not started"
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        process.kill()
        return describe_exit(process.wait())
