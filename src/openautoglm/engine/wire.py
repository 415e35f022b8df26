"""Frames between engine processes and their clients: declared types, length-prefixed, never pickle.

frame = 4 bytes big-endian length | msgpack of one tagged struct

client socket   Hello -> Welcome            then any number of
                Generate -> Accepted | Refused, then Events until every choice has finished
                Abort                       (no answer: the choices finish with "abort")
                AskStatus -> Status
                AskRecord -> Record | Refused
                AskMemory -> Memory | Refused       (with a budget: announced first)
                AskReport -> Report | Refused       (of memory, after or before tracing)
                AskProfile -> Profile | Refused     (when it has been taken)
                Fatal                       from the engine: the connection ends
control pipe    Start -> Loading* -> Ready | Failed        Stop -> the worker exits; so does end of file
"""

from __future__ import annotations

import asyncio
from typing import IO, Any, TypeVar

import msgspec

from openautoglm import errors
from openautoglm.engine.client import EngineDescription, EngineStatus, GenerationEvent, GenerationRequest
from openautoglm.engine.options import EngineOptions
from openautoglm.engine.record import MemoryReport, RequestRecord, WatchdogReport
from openautoglm.errors import EngineError, OpenAutoGLMError
from openautoglm.probe.stacks import StackProfile
from openautoglm.progress import Progress

PROTOCOL_VERSION = 6
LENGTH_BYTES = 4
MAX_FRAME_BYTES = 16 << 20


class Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Base of every frame; the class name is the tag."""


class WireError(msgspec.Struct, frozen=True, kw_only=True):
    """One of this package's errors as values; see `error_to_wire`."""

    kind: str
    message: str
    details: dict[str, str | float | tuple[str, ...] | None] = {}


class Hello(Frame, frozen=True, kw_only=True):
    """The first frame of a client."""

    version: int


class Generate(Frame, frozen=True, kw_only=True):
    """Submit a request; `call` names the answer."""

    call: int
    request: GenerationRequest


class Abort(Frame, frozen=True, kw_only=True):
    """End a request of this connection."""

    request_id: str


class AskStatus(Frame, frozen=True, kw_only=True):
    """Ask for `Status`."""

    call: int


class AskRecord(Frame, frozen=True, kw_only=True):
    """Ask where the time of one of this connection's requests went."""

    call: int
    request_id: str


class AskMemory(Frame, frozen=True, kw_only=True):
    """Ask for `Memory`; `budget_bytes` announces a new budget first."""

    call: int
    budget_bytes: int | None = None


class AskReport(Frame, frozen=True, kw_only=True):
    """Ask for `Report`; `trace` starts or stops following allocations."""

    call: int
    trace: bool | None = None


class AskProfile(Frame, frozen=True, kw_only=True):
    """Ask for `Profile`, of so many seconds at so many samples a second."""

    call: int
    seconds: float
    rate_hz: int


class Welcome(Frame, frozen=True, kw_only=True):
    """The answer to `Hello`."""

    description: EngineDescription


class Accepted(Frame, frozen=True, kw_only=True):
    """The request is queued."""

    call: int


class Refused(Frame, frozen=True, kw_only=True):
    """The call failed; nothing else suffers."""

    call: int
    error: WireError


class Events(Frame, frozen=True, kw_only=True):
    """News of this connection's requests, of one step."""

    events: tuple[GenerationEvent, ...]


class Status(Frame, frozen=True, kw_only=True):
    """The answer to `AskStatus`."""

    call: int
    status: EngineStatus


class Record(Frame, frozen=True, kw_only=True):
    """The answer to `AskRecord`; None for a request that is unknown or forgotten."""

    call: int
    record: RequestRecord | None


class Memory(Frame, frozen=True, kw_only=True):
    """The answer to `AskMemory`."""

    call: int
    report: MemoryReport


class Report(Frame, frozen=True, kw_only=True):
    """The answer to `AskReport`."""

    call: int
    report: WatchdogReport


class Profile(Frame, frozen=True, kw_only=True):
    """The answer to `AskProfile`."""

    call: int
    profile: StackProfile


class Fatal(Frame, frozen=True, kw_only=True):
    """The connection ends: its client broke the protocol, or the engine ended."""

    error: WireError


class Start(Frame, frozen=True, kw_only=True):
    """What a worker is to open, and where: `directory` is private, `parent_pid` its life line."""

    options: EngineOptions
    directory: str
    parent_pid: int
    log_level: str
    log_format: str


class Stop(Frame, frozen=True, kw_only=True):
    """End in good order."""


class Loading(Frame, frozen=True, kw_only=True):
    """How far the load is."""

    progress: Progress


class Ready(Frame, frozen=True, kw_only=True):
    """The socket accepts clients."""

    description: EngineDescription


class Failed(Frame, frozen=True, kw_only=True):
    """The load failed; the worker exits."""

    error: WireError


ClientFrame = Hello | Generate | Abort | AskStatus | AskRecord | AskMemory | AskReport | AskProfile
ServerFrame = Welcome | Accepted | Refused | Events | Status | Record | Memory | Report | Profile | Fatal
ControlFrame = Start | Stop
ReportFrame = Loading | Ready | Failed

_encoder = msgspec.msgpack.Encoder()
CLIENT_DECODER: msgspec.msgpack.Decoder[ClientFrame] = msgspec.msgpack.Decoder(ClientFrame)
SERVER_DECODER: msgspec.msgpack.Decoder[ServerFrame] = msgspec.msgpack.Decoder(ServerFrame)
CONTROL_DECODER: msgspec.msgpack.Decoder[ControlFrame] = msgspec.msgpack.Decoder(ControlFrame)
REPORT_DECODER: msgspec.msgpack.Decoder[ReportFrame] = msgspec.msgpack.Decoder(ReportFrame)

_Decoded = TypeVar("_Decoded")


def encode_frame(frame: Frame) -> bytes:
    """Return a frame's bytes; raise `EngineError` if it is larger than MAX_FRAME_BYTES or holds what has no form."""
    try:
        payload = _encoder.encode(frame)
    except (OverflowError, UnicodeEncodeError) as error:
        raise EngineError(f"a {type(frame).__name__} frame cannot be written: {error}") from error
    if len(payload) > MAX_FRAME_BYTES:
        raise EngineError(
            f"a {type(frame).__name__} frame has {len(payload)} bytes, at most {MAX_FRAME_BYTES} are allowed"
        )
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


def decode_payload(payload: bytes, decoder: msgspec.msgpack.Decoder[_Decoded]) -> _Decoded:
    """Decode a frame; raise `EngineError` for bytes that are not one of the declared frames."""
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, OpenAutoGLMError, RecursionError, UnicodeDecodeError) as error:
        raise EngineError(f"bytes that are no frame of protocol version {PROTOCOL_VERSION}: {error}") from error


async def read_frame(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[_Decoded]) -> _Decoded | None:
    """Read a frame; None at the end of the stream. Raises `EngineError` for truncated, oversized or garbage frames."""
    try:
        length = await reader.readexactly(LENGTH_BYTES)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise EngineError("the stream ended in the middle of a frame") from error
        return None
    size = _check_length(length)
    try:
        payload = await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        raise EngineError("the stream ended in the middle of a frame") from error
    return decode_payload(payload, decoder)


def read_frame_blocking(stream: IO[bytes], decoder: msgspec.msgpack.Decoder[_Decoded]) -> _Decoded | None:
    """`read_frame` over a buffered pipe."""
    length = stream.read(LENGTH_BYTES)
    if not length:
        return None
    payload = stream.read(_check_length(length)) if len(length) == LENGTH_BYTES else b""
    if len(length) < LENGTH_BYTES or len(payload) < _check_length(length):
        raise EngineError("the stream ended in the middle of a frame")
    return decode_payload(payload, decoder)


def _check_length(length: bytes) -> int:
    size = int.from_bytes(length, "big")
    if not 0 < size <= MAX_FRAME_BYTES:
        raise EngineError(f"a frame announces {size} bytes, 1 to {MAX_FRAME_BYTES} are allowed")
    return size


def error_to_wire(error: BaseException) -> WireError:
    """Turn an error into values; the public attributes of this package's errors go along."""
    if not isinstance(error, OpenAutoGLMError):
        return WireError(kind="EngineError", message=f"{type(error).__name__}: {error}")
    return WireError(kind=type(error).__name__, message=str(error), details=dict(vars(error)))


def error_from_wire(wire: WireError) -> OpenAutoGLMError:
    """Rebuild an error; a kind that this side does not know becomes `EngineError`."""
    kind: Any = getattr(errors, wire.kind, None)
    if isinstance(kind, type) and issubclass(kind, OpenAutoGLMError):
        error: OpenAutoGLMError = kind.__new__(kind, wire.message)
        for name, value in wire.details.items():
            setattr(error, name, value)
        return error
    return EngineError(wire.message)
