"""`openautoglm plan --device` and `--table`: what devices of so much memory can hold."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from openautoglm.errors import ConfigError
from openautoglm.spec.goal import Goal


def show_devices(model: str, devices_bytes: Sequence[int], goal: Goal, *, as_json: bool) -> None:
    """Print which formats of a model fit each device, how far each goes, and what it costs in quality."""
    from dataclasses import replace

    from openautoglm.checkpoint.hub import parse_reference, resolve_config
    from openautoglm.families.registry import describe
    from openautoglm.planner.devices import device_options, device_table, options_as_list
    from openautoglm.planner.explain import SCHEMA_VERSION

    _check(goal, devices_bytes)
    parsed = parse_reference(model)
    config, _ = resolve_config(model)
    spec = describe(config)
    if goal.quant is None and parsed.quant is not None:
        goal = replace(goal, quant=parsed.quant)
    options = {size: device_options(spec, size, goal) for size in devices_bytes}
    name = str(replace(parsed, quant=None))
    if as_json:
        devices = [{"device_bytes": size, "options": options_as_list(found)} for size, found in options.items()]
        click.echo(json.dumps({"schema_version": SCHEMA_VERSION, "model": name, "devices": devices}, indent=2))
    else:
        click.echo(device_table(name, options))


def show_models(devices_bytes: Sequence[int], goal: Goal, *, as_json: bool) -> None:
    """Print published models by devices."""
    from openautoglm.families.published import published_configs
    from openautoglm.families.registry import describe
    from openautoglm.planner.devices import (
        USUAL_DEVICES_BYTES,
        best_option,
        device_options,
        models_table,
        options_as_list,
    )
    from openautoglm.planner.explain import SCHEMA_VERSION

    _check(goal, devices_bytes)
    sizes = tuple(devices_bytes) or USUAL_DEVICES_BYTES
    specs = {name: describe(config) for name, config in published_configs().items()}
    if goal.context_tokens is not None:
        specs = {name: spec for name, spec in specs.items() if spec.max_positions >= goal.context_tokens}
    if not as_json:
        click.echo(models_table(specs, sizes, goal))
        return
    models = []
    for name, spec in specs.items():
        best = [best_option(spec, device_options(spec, size, goal)) for size in sizes]
        cells = [None if option is None else options_as_list([option])[0] for option in best]
        models.append({"model": name, "best": cells})
    answer = {"schema_version": SCHEMA_VERSION, "devices_bytes": list(sizes), "models": models}
    click.echo(json.dumps(answer, indent=2))


def _check(goal: Goal, devices_bytes: Sequence[int]) -> None:
    """Refuse what means nothing for a device that is only described."""
    if any(size < 1 for size in devices_bytes):
        raise ConfigError("a device has a size above zero, such as 24GiB")
    for name, value in (
        ("--memory", goal.memory_bytes),
        ("--threads", goal.num_threads),
        ("--objective", goal.objective),
        ("--offload", None if goal.offload is Goal().offload else goal.offload),
        ("--place", None if goal.placement == Goal().placement else goal.placement),
        ("--offload-dir", goal.offload_directory),
        ("--spill-memory", goal.spill.memory_bytes or None),
        ("--spill-disk", goal.spill.disk_bytes or None),
        ("--spill-dir", goal.spill.directory),
    ):
        if value is not None:
            raise ConfigError(f"{name} means nothing for a device: leave it out, or leave --device and --table out")
