"""The child that renders chat templates: run as a program, never imported.

A template comes from a checkpoint and is hostile: it runs in jinja2's sandbox, in this process, under limits of
processor time, memory and output that the parent sets in the first frame. Frames on standard input and output are
JSON behind a length of four bytes, big-endian. It stands by itself (standard library and jinja2) to start fast.

Rendering follows transformers' `apply_chat_template`: same environment, filters and globals.
"""

from __future__ import annotations

import json
import resource
import signal
import struct
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_LENGTH = struct.Struct(">I")
_MAX_MESSAGE_CHARS = 500


class _TooLongError(Exception):
    """The output passed its limit."""


class _RaisedError(jinja2.TemplateError):
    """The template called raise_exception: its message is meant for the user."""


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks text for training: rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as an instance attribute

    def parse(self, parser: Parser) -> Node:
        """Turn the block into a call that returns its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class _PlainNamespace(Namespace):
    """jinja2's namespace, without names that reach into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self, rest = args[0], args[1:]
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no attribute {name!r}")


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML, which prompts are not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise _RaisedError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005  templates expect the local date


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:  # noqa: ANN401
    # A function in the place of the type, which has methods that templates have no business with.
    return dict(*args, **kwargs)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.pop("lipsum")
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _make_dict,
        "namespace": _PlainNamespace,
    }
    return environment


def _short(error: Exception) -> str:
    """Return the message, cut where it could carry a whole prompt."""
    text = str(error)
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[:_MAX_MESSAGE_CHARS] + "…"


def _private_bytes() -> int:
    """Return what RLIMIT_DATA limits, as it is now: VmData of proc(5)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:"))


class Worker:
    """Answers render requests until its input ends, which is also how it dies with its parent."""

    def __init__(self, first_frame: Mapping[str, Any]) -> None:
        self._sources: dict[str, str] = first_frame["templates"]
        self._cpu_seconds: float = first_frame["cpu_seconds"]
        self._environment = _environment()
        self._compiled: dict[str, jinja2.Template] = {}
        # Private memory alone: it is what the budget counts, and the address space of libraries says nothing of it.
        most_bytes = _private_bytes() + first_frame["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    def answer(self, request: Mapping[str, Any]) -> dict[str, str]:
        """Render, under the limit of processor time: when it is up, SIGPROF ends the process, whatever it is in."""
        signal.setitimer(signal.ITIMER_PROF, self._cpu_seconds)
        try:
            return {"text": self._render(request["name"], request["variables"], request["max_output_chars"])}
        except _RaisedError as error:
            return {"error": "raised", "message": _short(error)}
        except _TooLongError:
            return {"error": "output", "message": ""}
        except jinja2.exceptions.SecurityError as error:
            return {"error": "sandbox", "message": _short(error)}
        except MemoryError:
            return {"error": "memory", "message": ""}
        except Exception as error:  # noqa: BLE001  a template can raise anything; the parent gets it as a message
            return {"error": "failed", "message": f"{type(error).__name__}: {_short(error)}"}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0.0)

    def _render(self, name: str, variables: Mapping[str, Any], max_output_chars: int) -> str:
        if name not in self._compiled:
            self._compiled[name] = self._environment.from_string(self._sources[name])
        pieces: list[str] = []
        num_chars = 0
        for piece in self._compiled[name].generate(variables):
            num_chars += len(piece)
            if num_chars > max_output_chars:
                raise _TooLongError
            pieces.append(piece)
        return "".join(pieces)


def read_frame(stream: BinaryIO) -> Any:  # noqa: ANN401
    """Read one frame; None at the end of the stream."""
    header = stream.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        return None
    return json.loads(stream.read(_LENGTH.unpack(header)[0]))


def write_frame(stream: BinaryIO, value: object) -> None:
    """Write one frame; characters that are not ASCII travel escaped, so that any string can."""
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
