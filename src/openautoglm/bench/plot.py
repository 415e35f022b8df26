"""A report as a picture: speeds beside what the machine allows. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from openautoglm.bench.report import BenchReport
from openautoglm.errors import ConfigError


def check_plotting() -> None:
    """Raise `ConfigError` now, rather than after minutes of measuring, if matplotlib is absent."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'openautoglm[plot]', or leave --plot out")


def save_plot(report: BenchReport, file: Path) -> None:
    """Write tokens per second, measured and at the roofline, on a logarithmic axis; the suffix chooses the format.

    Raises `ConfigError` for a suffix that matplotlib does not write.
    """
    check_plotting()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [one for one in report.measurements if one.kind != "first_token"]
    labels = [f"{one.kind}\n{one.size}" for one in shown]
    measured = [one.tokens_per_second for one in shown]
    possible = [one.num_tokens / one.least_seconds(report.roofline) for one in shown]
    figure = Figure(figsize=(1.2 * len(shown) + 2, 4.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(shown))
    axes.bar([place - 0.2 for place in places], measured, width=0.4, label="measured")
    axes.bar([place + 0.2 for place in places], possible, width=0.4, label="roofline", color="lightgrey")
    for place, one in zip(places, shown, strict=True):
        share = f"{100 * one.roofline_share(report.roofline):.0f} %"
        axes.annotate(share, (place - 0.2, one.tokens_per_second), ha="center", va="bottom")
    axes.set_yscale("log")
    axes.set_xticks(list(places), labels)
    axes.set_ylabel("tokens per second")
    axes.set_title(f"{report.plan.model}, {report.plan.formats.layers}, {report.roofline.num_threads} threads")
    axes.legend()
    supported = canvas.get_supported_filetypes()
    if file.suffix.removeprefix(".") not in supported:
        raise ConfigError(f"{file} cannot be a picture: use a suffix such as .png, .svg or .pdf")
    figure.savefig(file)
