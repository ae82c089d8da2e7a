"""Curves as scalable graphics that the server draws: points of a plot that is as wide as the page, and its axes."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxbooth.report.charts import format_value, natural_order
from jaxbooth.report.curves import (
    HELD_OUT_BIN,
    ChartStyle,
    Curve,
    chart_style,
    keep_extremes,
    smoothed,
    smoothing_span,
    table_steps,
    value_at,
)

WIDTH = 1000  # of a plot's own coordinates; it is stretched to the width of its place
LARGE_HEIGHT, SMALL_HEIGHT = 200, 130  # pixels
Y_TICKS, X_TICKS = 5, 5  # at most, about
FEW_POINTS = 60  # up to here each value gets a dot
LARGE = ("loss", "eval/drift")  # what is looked at first
# What stands below them, in this order; then all others.
SMALL = (
    "validation/subject_loss", "validation/class_loss", "eval/subject_distance", "instance_loss", "prior_loss",
    "grad_norm", "learning_rate", "images_per_second",
)  # fmt: skip


class Tick(NamedTuple):
    """A mark of an axis: its label, and where it lies, in pixels from the top or percent from the left."""

    label: str
    position: float


class ChartView(NamedTuple):
    """What the template draws of a metric.

    Attributes:
        height: of the plot, in pixels.
        line, noise: what is read, and the raw values behind it, as SVG paths; may be empty.
        dots: where there are few values, one each.
        latest: the last value of what is read.
        span: about how many steps a point of the line averages; 0 for raw values.
        rows: of the table, (step, value).
        description: for those who do not see it.
        reading: for the page's script: first and last step, ends of the axis of values, whether that is logarithmic.
    """

    metric: str
    style: ChartStyle
    height: int
    line: str
    noise: str
    dots: str
    y_ticks: list[Tick]
    x_ticks: list[Tick]
    latest: str
    span: int
    rows: list[tuple[int, str]]
    description: str
    reading: str


def chart_views(curves: Mapping[str, Curve], logarithmic: bool) -> tuple[list[ChartView], list[ChartView]]:
    """Returns the charts that are shown large, and the others.

    Args:
        logarithmic: the scale of metrics that have a choice.
    """
    drawn = {name: curve for name, curve in curves.items() if len(curve.steps) and not is_left_out(name)}
    small = [name for name in SMALL if name in drawn]
    small += sorted(drawn.keys() - {*LARGE, *SMALL}, key=natural_order)
    return (
        [chart_view(name, drawn[name], logarithmic, LARGE_HEIGHT) for name in LARGE if name in drawn],
        [chart_view(name, drawn[name], logarithmic, SMALL_HEIGHT) for name in small],
    )


def is_left_out(metric: str) -> bool:
    """Whether a metric has no chart: the held-out loss of a part of the timesteps, and memory, which is one number."""
    return "memory" in metric or HELD_OUT_BIN.fullmatch(metric) is not None


def chart_view(metric: str, curve: Curve, logarithmic: bool, height: int) -> ChartView:
    """Draws a metric."""
    style = chart_style(metric)
    line = smoothed(curve) if style.smooth else keep_extremes(curve)
    noise = keep_extremes(curve) if style.smooth and len(curve.steps) > 1 else None
    is_log = logarithmic and style.logarithmic and bool((curve.values > 0).all())
    shown = [line] if noise is None else [line, noise]
    ticks, low, high = log_axis(shown) if is_log else linear_axis(shown, style.zero)
    first, last = int(curve.steps[0]), int(curve.steps[-1])

    def points(drawn: Curve) -> list[tuple[float, float]]:
        values = np.log10(drawn.values) if is_log else drawn.values
        x = WIDTH * (drawn.steps - first) / max(1, last - first)
        y = height * (1 - (values - low) / (high - low))
        return list(zip(x.tolist(), y.tolist(), strict=True))

    few = (len(curve.steps) <= FEW_POINTS and not style.smooth) or len(curve.steps) == 1
    latest, earliest = format_value(float(line.values[-1])), format_value(float(line.values[0]))
    at = f"{latest} at step {last}"
    return ChartView(
        metric=metric,
        style=style,
        height=height,
        line=path(points(line)),
        noise=path(points(noise)) if noise else "",
        dots="".join(f"M{x:.1f} {y:.1f}h0" for x, y in points(curve)) if few else "",
        y_ticks=[Tick(label, round(height * (1 - (value - low) / (high - low)), 1)) for label, value in ticks],
        x_ticks=step_ticks(first, last),
        latest=latest,
        span=smoothing_span(curve) if style.smooth else 0,
        rows=[(step, format_value(value_at(line, step))) for step in table_steps([line])],
        reading=json.dumps([first, last, low, high, is_log]),
        description=f"{style.title}: {at}"
        if first == last
        else f"{style.title}: from {earliest} at step {first} to {at}",
    )


def path(points: Sequence[tuple[float, float]]) -> str:
    """Returns an SVG path through points; empty for a single one."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) if len(points) > 1 else ""


def linear_axis(curves: Sequence[Curve], zero: bool) -> tuple[list[tuple[str, float]], float, float]:
    """Returns an axis's ticks (label, value) and its ends.

    Args:
        zero: it begins at 0.
    """
    low = min(float(curve.values.min()) for curve in curves)
    high = max(float(curve.values.max()) for curve in curves)
    low = min(low, 0.0) if zero else low
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a flat curve lies in the middle
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    step = round_step((high - low) / Y_TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    values = [index * step for index in range(first, last + 1)]
    return [(format_tick(value, step), value) for value in values], values[0], values[-1]


def log_axis(curves: Sequence[Curve]) -> tuple[list[tuple[str, float]], float, float]:
    """Returns the ticks (label, log10 of the value) and the ends of a logarithmic axis; all values are positive."""
    low = math.log10(min(float(curve.values.min()) for curve in curves))
    high = math.log10(max(float(curve.values.max()) for curve in curves))
    if high - low < 0.05:
        low, high = low - 0.1, high + 0.1
    decades = range(math.floor(low) - 1, math.ceil(high) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10)), tuple(np.arange(1, 10, 0.1).round(1).tolist())):
        values = [digit * 10.0**decade for decade in decades for digit in digits]
        within = [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
        if len(within) >= 3:
            break
    every = max(1, math.ceil(len(within) / (Y_TICKS + 1)))
    return [(f"{value:.3g}", math.log10(value)) for value in within[::every]], low, high


def step_ticks(first: int, last: int) -> list[Tick]:
    """Returns the ticks of an axis of steps."""
    if first == last:
        return [Tick(f"{first:,}", 0.0)]
    step = max(1, round(round_step((last - first) / X_TICKS)))
    values = range(-(-first // step) * step, last + 1, step)
    return [Tick(f"{value:,}", round(100 * (value - first) / (last - first), 2)) for value in values]


def round_step(least: float) -> float:
    """Returns the smallest of 1, 2, 2.5 and 5 times a power of ten that is not below `least`."""
    scale = 10.0 ** math.floor(math.log10(least))
    return next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= least * (1 - 1e-9))


def format_tick(value: float, step: float) -> str:
    """Writes a value of an axis with as many digits as tell its neighbours apart."""
    if abs(value) < step / 2:
        return "0"
    if abs(value) >= 1e5 or step < 1e-4:
        return f"{value:.3g}".replace("e-0", "e-").replace("e+0", "e")
    decimals = next((digits for digits in range(7) if abs(round(step, digits) - step) < step * 1e-6), 7)
    return f"{value:,.{decimals}f}"
