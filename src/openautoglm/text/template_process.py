"""The process that renders chat templates, as its parent sees it: started on first use, replaced when it had to die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from openautoglm.errors import TemplateError
from openautoglm.log import get_logger
from openautoglm.text.children import child_command, child_environment, describe_exit
from openautoglm.text.frames import read_frame, write_frame
from openautoglm.units import MIB, format_bytes

T = TypeVar("T")

_EXIT_SECONDS = 0.2
_logger = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateLimits:
    """What one rendering may take.

    Processor time is what a template is judged by, so that a busy machine fails no request; the wall clock is only
    there for a worker that is stuck or stopped. The output may be longer than `output_chars` only as far as the
    messages themselves are (twice their length). `memory_bytes` is what the worker may take above what it takes idle.
    """

    cpu_seconds: float = 2.0
    wall_seconds: float = 30.0
    output_chars: int = 1 << 20
    memory_bytes: int = 512 * MIB


class TemplateProcess:
    """One worker; `render` is safe from any thread, one rendering at a time."""

    def __init__(self, templates: Mapping[str, str], limits: TemplateLimits) -> None:
        self._templates = dict(templates)
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The worker's process id, None while there is none."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the worker now rather than with the first rendering; raise `TemplateError` if it does not start."""
        with self._lock:
            if not self._ready and not self._closed:
                self._guarded(self._start)

    def spawn(self) -> None:
        """Begin to start the worker; `start`, or the first rendering, waits for it and says what went wrong."""
        with self._lock:
            if self._process is None and not self._closed:
                self._spawn()

    def render(self, name: str, variables: Mapping[str, object]) -> str:
        """Render the template `name`; raise `TemplateError` for whatever goes wrong in it."""
        body = json.dumps(variables)
        request = {
            "name": name,
            "variables": variables,
            "max_output_chars": max(self._limits.output_chars, 2 * len(body)),
        }
        with self._lock:
            if self._closed:
                raise TemplateError("the chat template was closed")
            reply = self._exchange(request)
        if "text" in reply:
            return str(reply["text"])
        raise TemplateError(self._explain(str(reply.get("error")), str(reply.get("message"))))

    def close(self) -> None:
        """End the worker; safe to call twice."""
        with self._lock:
            self._closed = True
            self._stop()

    def _exchange(self, request: Mapping[str, object]) -> dict[str, object]:
        if self._process is not None and self._process.poll() is not None:
            # It died while idle (somebody's kill): that is no fault of this request.
            _logger.warning("the template worker was gone (%s): starting another", describe_exit(self._stop()))

        def talk(deadline: float) -> dict[str, object]:
            if not self._ready:
                self._start(deadline)
            return self._talk(request, deadline)

        return self._guarded(talk)

    def _guarded(self, work: Callable[[float], T]) -> T:
        """Run `work` with the deadline of the wall clock; whatever goes wrong costs the worker its life."""
        try:
            return work(time.monotonic() + self._limits.wall_seconds)
        except TimeoutError:
            self._stop()
            raise TemplateError(
                f"the chat template did not finish within {self._limits.wall_seconds:g} s: it may loop without end"
            ) from None
        except (EOFError, BrokenPipeError):
            how = self._stop()
            if how == -signal.SIGPROF:
                message = (
                    f"the chat template used more than its {self._limits.cpu_seconds:g} s of processor time: "
                    "send fewer or shorter messages, or check the template for loops"
                )
            else:
                message = f"the process that renders the chat template ended ({describe_exit(how)})"
            raise TemplateError(message) from None

    def _spawn(self) -> None:
        self._process = subprocess.Popen(
            child_command("template_worker.py"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(),
            bufsize=0,
        )
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)

    def _start(self, deadline: float) -> None:
        if self._process is None:
            self._spawn()
        first = {
            "templates": self._templates,
            "cpu_seconds": self._limits.cpu_seconds,
            "memory_bytes": self._limits.memory_bytes,
        }
        self._talk(first, deadline)
        self._ready = True

    def _stop(self) -> int:
        """Kill and reap the worker; return its exit code, negative for a signal."""
        process, self._process, self._ready = self._process, None, False
        if process is None:
            return 0
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        # An idle one ends by itself at the end of its input; one that has just died keeps its own exit code.
        try:
            return process.wait(timeout=_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def _talk(self, value: object, deadline: float) -> dict[str, object]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        num_bytes = write_frame(process.stdin.fileno(), value, deadline)
        # Twelve bytes of JSON a character at most: a longer frame is not an answer of ours.
        max_bytes = 16 * max(self._limits.output_chars, 2 * num_bytes)
        return read_frame(process.stdout.fileno(), deadline, max_bytes=max_bytes)

    def _explain(self, kind: str, message: str) -> str:
        limits = self._limits
        return {
            "raised": f"the chat template refuses these messages: {message}",
            "output": f"the chat template wrote more than its limit of {limits.output_chars} characters",
            "sandbox": f"the chat template tried what its sandbox does not allow: {message}",
            "memory": f"the chat template needed more than its limit of {format_bytes(limits.memory_bytes)} of memory",
        }.get(kind, f"the chat template failed: {message}")
