"""`ServeOptions`: what `openautoglm serve` is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from openautoglm.engine.options import EngineOptions
from openautoglm.serve.access import AccessOptions
from openautoglm.serve.answer_options import AnswerOptions
from openautoglm.serve.audit import AuditOptions
from openautoglm.serve.privacy import PrivacyOptions
from openautoglm.serve.trace_options import TraceOptions
from openautoglm.serve.web import Tls
from openautoglm.spec.reuse import ReuseOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """An engine and where to serve it.

    `model_names` are the names that clients may ask for;
    without any it is the model's reference. `drain_seconds` is how long requests under way may go on after SIGTERM.
    `traces` says where traces go; None for none.
    `traffic_file` gets a trace of the requests.
    `receipt_file` gets the receipt as JSON after the load.
    """

    engine: EngineOptions
    host: str = "127.0.0.1"
    port: int = 8000
    tls: Tls | None = None
    access: AccessOptions = field(default_factory=AccessOptions)
    audit: AuditOptions | None = None
    privacy: PrivacyOptions = field(default_factory=PrivacyOptions)
    model_names: tuple[str, ...] = ()
    drain_seconds: float = 30.0
    traces: TraceOptions | None = None
    traffic_file: Path | None = None
    receipt_file: Path | None = None
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    reuse: ReuseOptions = field(default_factory=ReuseOptions)
