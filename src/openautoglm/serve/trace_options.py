"""What an operator says about traces."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from urllib.parse import urlsplit

from openautoglm.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """Where traces go, as the base address of an OTLP collector over HTTP; and the share of requests that have one.

    A request whose `traceparent` says that its trace is sampled has one, and one that says otherwise has none.
    """

    endpoint: str
    sample_ratio: float = 1.0

    def check(self) -> None:
        """Raise `ConfigError` for an address that is none, or where the extra is not installed."""
        address = urlsplit(self.endpoint)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ConfigError(
                f"--otlp-endpoint {self.endpoint} must be an address such as http://127.0.0.1:4318 of an OpenTelemetry "
                "collector"
            )
        if importlib.util.find_spec("opentelemetry.exporter") is None:
            raise ConfigError("--otlp-endpoint needs more packages: pip install 'openautoglm[otel]'")
