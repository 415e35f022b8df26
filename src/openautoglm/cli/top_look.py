"""`ServerLook`: one look at a running server, read from its metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import click

Rates = dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLook:
    """Metrics at one moment: `values` by name (labels other than the model's left out), `groups` by name and label."""

    seconds: float
    model: str
    values: dict[str, float]
    groups: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether the engine takes requests; without that there is little else to see."""
        return self.values.get("openautoglm_engine_ready") == 1

    def number(self, name: str) -> int:
        """Return a metric as a whole number; 0 where it is missing."""
        return int(self.values.get(name, 0))

    def group(self, name: str) -> dict[str, int]:
        """Return a metric by its label; empty where it is missing."""
        return {label: int(value) for label, value in self.groups.get(name, {}).items()}


# What is shown per second, and the counters it comes from.
RATES = {
    "generated_tokens": "vllm:generation_tokens_total",
    "prompt_tokens": "vllm:prompt_tokens_total",
    "steps": "openautoglm_steps_total",
}


def read_metrics(text: str, seconds: float) -> ServerLook:
    """Read Prometheus' text format; raise `click.ClickException` for what is not this package's."""
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[str, float] = {}
    groups: dict[str, dict[str, float]] = {}
    model = ""
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = dict(sample.labels)
                model = labels.pop("model_name", model)
                if not math.isfinite(sample.value):
                    continue
                if not labels:
                    values[sample.name] = sample.value
                elif "le" not in labels:
                    groups.setdefault(sample.name, {})[printable("/".join(labels.values()))] = sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise click.ClickException(f"the answer is not in the format of metrics: {error}") from None
    if "openautoglm_engine_ready" not in values:
        raise click.ClickException("the answer has no metrics of this package: is it another server, or an older one?")
    return ServerLook(seconds=seconds, model=printable(model), values=values, groups=groups)


def rates(look: ServerLook, before: ServerLook | None) -> Rates:
    """Return what happened per second between two looks; None where that is not known (an engine that started anew)."""
    found: Rates = dict.fromkeys(RATES)
    if before is None or look.seconds <= before.seconds:
        return found
    for name, counter in RATES.items():
        if counter in look.values and counter in before.values and look.values[counter] >= before.values[counter]:
            found[name] = (look.values[counter] - before.values[counter]) / (look.seconds - before.seconds)
    return found


def look_as_dict(url: str, look: ServerLook, per_second: Rates) -> dict[str, Any]:
    """Return a look for programs."""
    memory = "openautoglm_memory_"
    limits, left = look.group(f"{memory}limit_bytes"), look.group(f"{memory}left_bytes")
    return {
        "schema_version": 1,
        "url": url,
        "model": look.model,
        "ready": look.ready,
        "budget_bytes": look.number(f"{memory}budget_bytes"),
        "tree_bytes": look.number(f"{memory}tree_bytes"),
        "ledger_bytes": look.group(f"{memory}ledger_bytes"),
        "kv_blocks": look.group("openautoglm_kv_blocks"),
        "kv_pool_blocks": look.group("openautoglm_kv_pool_blocks"),
        "kv_block_bytes": look.number("openautoglm_kv_block_bytes"),
        "step_tokens": look.number("openautoglm_step_tokens"),
        "rung": rung_name(look),
        "rung_transitions": look.group("openautoglm_ladder_rung_transitions_total"),
        "byte_pressure": look.values.get(f"{memory}pressure", 0.0),
        "block_pressure": look.values.get("openautoglm_block_pressure", 0.0),
        "stalled_share": look.values.get(f"{memory}stalled_share", 0.0),
        "rooms": {name: {"limit_bytes": limits[name], "left_bytes": left.get(name, 0)} for name in limits},
        "requests": {name: look.number(metric) for name, metric in REQUESTS.items()},
        "per_second": per_second,
        "memory_reports": look.group(f"{memory}reports_total"),
    }


REQUESTS = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "preempted": "vllm:num_preemptions_total",
    "refused": "openautoglm_refused_requests_total",
    "late": "openautoglm_missed_deadlines_total",
}


def rung_name(look: ServerLook) -> str:
    """Return the name of the rung that holds now; "none" without one."""
    from openautoglm.spec.pressure import Rung

    number = look.number("openautoglm_ladder_rung")
    return next((rung.label for rung in Rung if rung == number), str(number))


def printable(text: str) -> str:
    """Return text without what a terminal would obey: names come from a server that may be anybody's."""
    return "".join(character if character.isprintable() else "?" for character in text)
