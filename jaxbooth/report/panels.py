"""The curves of all runs as charts: one panel for each metric, its data, and the table behind it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxbooth.report.curves import (
    CHART_STYLES,
    ChartStyle,
    Curve,
    chart_style,
    keep_extremes,
    smoothed,
    smoothing_span,
    table_steps,
    value_at,
)
from jaxbooth.report.run_data import RunData

DIGITS = 5  # significant ones of what the page holds
FEW_POINTS = 60  # up to here each value of a curve gets a dot


class Chart(NamedTuple):
    """A panel of the page.

    Attributes:
        group: "training" or "validation".
        span: about how many steps a point of the smooth curves averages; 0 for raw ones.
        header: names of the runs that have the metric.
        rows: (step, value of each of these runs in words).
        data: for the page's script.
    """

    metric: str
    group: str
    panel: ChartStyle
    span: int
    header: list[str]
    rows: list[tuple[int, list[str]]]
    data: dict[str, Any]


def make_charts(runs: Sequence[RunData]) -> list[Chart]:
    """Returns the charts, those of every step first, in an order that does not depend on the runs."""
    found = []
    for group, logs in (
        ("training", [logged(run) for run in runs]),
        ("validation", [run.figures for run in runs]),
    ):
        names = {name for log in logs for name in log}
        known = [name for name in CHART_STYLES if name in names]
        for metric in known + sorted(names - set(known)):
            found.append(make_chart(metric, group, [log.get(metric) for log in logs], [run.name for run in runs]))
    return found


def logged(run: RunData) -> dict[str, Curve]:
    """Returns what a run logged, without a prior loss that it does not have."""
    return {name: curve for name, curve in run.curves.items() if name != "prior_loss" or run.config.prior_rows}


def make_chart(metric: str, group: str, curves: Sequence[Curve | None], names: Sequence[str]) -> Chart:
    """Makes a metric's chart.

    Args:
        curves: of each run; None where it has none.
    """
    panel = chart_style(metric)
    own = [(name, curve) for name, curve in zip(names, curves, strict=True) if curve is not None]
    lines = [(name, curve, smoothed(curve) if panel.smooth else keep_extremes(curve)) for name, curve in own]
    series = [make_series(name, curve, line, panel) for name, curve, line in lines]
    steps = table_steps([line for _, _, line in lines])
    rows = [(step, [number(value_at(line, step)) for _, _, line in lines]) for step in steps]
    data = {"title": panel.title, "log": panel.logarithmic, "zero": panel.zero, "series": series}
    span = max(smoothing_span(curve) for _, curve in own) if panel.smooth else 0
    return Chart(metric, group, panel, span, [name for name, _ in own], rows, data)


def make_series(name: str, curve: Curve, line: Curve, panel: ChartStyle) -> dict[str, Any]:
    """Returns a run's curves: the one that is read, the noise behind it, and dots where there are few values."""
    dots = curve if len(curve.steps) <= FEW_POINTS and not panel.smooth else None
    raw = keep_extremes(curve) if panel.smooth else None
    return {"run": name, "smooth": columns(line), "raw": columns(raw), "points": columns(dots)}


def columns(curve: Curve | None) -> list[list[float]]:
    """Returns steps and values, rounded, for JSON."""
    if curve is None:
        return [[], []]
    return [curve.steps.tolist(), [float(np.format_float_positional(value, DIGITS, fractional=False))
                                   for value in curve.values]]  # fmt: skip


def number(value: float | None) -> str:
    """Writes a value of the table."""
    return "–" if value is None else f"{value:.4g}"
