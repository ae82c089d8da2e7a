"""The charts of a report: Vega-Lite specifications, which Vega draws in the page, and each metric's data and table.

All metrics share a few specifications, whose data sets have the names "raw", "smooth" and "points". Colours are the
page's CSS variables, so charts follow the reader's light or dark theme without being drawn again.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.report.curves import (
    CHART_STYLES,
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
from jaxbooth.report.run_data import RunData

DIGITS = 5  # significant ones of what the page holds
FEW_POINTS = 60  # up to here each value of a curve gets a dot
COLOURS = 8  # --run-0 .. --run-7 in style.css
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
# A small or large number is written with an exponent; d3 leaves some labels of a logarithmic axis empty.
NUMBER = (
    "datum.label === '' ? '' : datum.value !== 0 && (abs(datum.value) < 1e-3 || abs(datum.value) >= 1e5)"
    " ? format(datum.value, '.3~e') : format(datum.value, '~g')"
)


def import_vl_convert() -> Any:
    """Imports the library that brings Vega.

    Raises:
        UserError: it is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise UserError("the charts of a report need a library: pip install 'jaxbooth[report]'.") from None
    return vl_convert


@cache
def vega_script() -> str:
    """Returns the script that defines `window.vegaEmbed`, and no other name, for use inside of an HTML page."""
    bundle = import_vl_convert().javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    return f"(() => {{{bundle}}})();"


def theme() -> dict[str, Any]:
    """Returns the Vega-Lite configuration of axes and text."""
    text = {"labelColor": "var(--ink-2)", "titleColor": "var(--ink-2)", "labelFontSize": 12, "titleFontSize": 12}
    lines = {
        "gridColor": "var(--line)",
        "domain": False,
        "ticks": False,
        "labelPadding": 6,
        "titleFontWeight": "normal",
    }
    return {
        "font": FONT,
        "background": None,
        "view": {"stroke": None},
        "axis": text | lines,
        "axisX": {"grid": False, "domain": True, "domainColor": "var(--line-2)", "labelFlush": True},
        "header": text,
    }


def run_colour(number: int) -> str:
    """Returns the colour of a run, the same in every chart; it follows the page's theme."""
    return f"var(--run-{number % COLOURS})"


def curve_spec(names: Sequence[str], scale: str, zero: bool) -> dict[str, Any]:
    """Returns the Vega-Lite specification of a metric over steps.

    The data sets hold rows {run, step, value}. The signals "reading", the step under the cursor, and "shown", the step
    whose images are shown, are a vertical line each, or null for none.

    Args:
        names: of all runs of the report.
        scale: "linear" or "log".
        zero: whether a linear axis begins at 0.
    """
    colours = {"domain": list(names), "range": [run_colour(number) for number in range(len(names))]}
    colour = {"field": "run", "type": "nominal", "scale": colours, "legend": None}
    beside = {"titleAlign": "right", "titleAnchor": "start", "titleX": -6, "titleY": 6, "titleBaseline": "top"}
    x = {"field": "step", "type": "quantitative", "title": "step", "scale": {"zero": False, "nice": False}}
    x["axis"] = {"tickCount": {"expr": "max(2, floor(width / 80))"}, "format": ",d", "tickMinStep": 1, **beside}
    y = {"field": "value", "type": "quantitative", "title": None}
    y["scale"] = {"type": "log", "nice": False} if scale == "log" else {"type": "linear", "zero": zero}
    y["axis"] = {"tickCount": 5, "labelExpr": NUMBER, "labelOverlap": "greedy"}

    def layer(name: str, mark: dict[str, Any]) -> dict[str, Any]:
        encoding = {"x": x, "y": y, "color": colour}
        return {"data": {"name": name}, "mark": mark | {"clip": False}, "encoding": encoding}

    def vertical_line(signal: str, mark: dict[str, Any]) -> dict[str, Any]:
        transform = [{"calculate": signal, "as": "step"}, {"filter": "isValid(datum.step)"}]
        return {
            "data": {"values": [{}]},
            "transform": transform,
            "mark": {"type": "rule", **mark},
            "encoding": {"x": x},
        }

    layers = [
        vertical_line("shown", {"strokeDash": [3, 3], "color": "var(--ink-3)"}),
        vertical_line("reading", {"color": "var(--ink-2)"}),
        layer("raw", {"type": "line", "strokeWidth": 1, "opacity": 0.28}),
        layer("smooth", {"type": "line", "strokeWidth": 2, "strokeCap": "round", "strokeJoin": "round"}),
        layer("points", {"type": "point", "filled": True, "size": 40, "opacity": 1}),
    ]
    params = [{"name": "reading", "value": None}, {"name": "shown", "value": None}]
    return {"width": "container", "height": 200, "params": params, "layer": layers, "config": theme()}


def interval_spec(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the Vega-Lite specification of a metric's mean and interval for each model.

    Args:
        rows: {model, colour, mean, low, high}; low and high may be None.
    """
    axis = {"tickCount": 4, "labelExpr": NUMBER, "grid": True, "domain": False}
    x = {"type": "quantitative", "title": None, "scale": {"zero": False, "padding": 8}, "axis": axis}
    y = {"field": "model", "type": "nominal", "sort": [row["model"] for row in rows], "axis": None}
    colour = {"field": "colour", "type": "nominal", "scale": None}
    known = [{"filter": "isValid(datum.low) && isValid(datum.high)"}]
    whisker = {"x": {"field": "low", **x}, "x2": {"field": "high"}, "y": y, "color": colour}
    mean = {"x": {"field": "mean", **x}, "y": y, "color": colour}
    layers = [
        {"transform": known, "mark": {"type": "rule", "strokeWidth": 2}, "encoding": whisker},
        {"mark": {"type": "point", "filled": True, "size": 70, "opacity": 1}, "encoding": mean},
    ]
    size = {"width": "container", "height": 24 * max(1, len(rows))}
    return {**size, "data": {"values": list(rows)}, "layer": layers, "config": theme()}


class Chart(NamedTuple):
    """The chart of one metric.

    Attributes:
        group: "training", "validation", or "validation_bins" for the losses of parts of the timesteps.
        span: about how many steps a point of the smooth curves averages; 0 for raw ones.
        header: names of the runs that have the metric.
        rows: of the table, (step, the runs' values as text).
        data: for the page's script.
    """

    metric: str
    group: str
    style: ChartStyle
    span: int
    header: list[str]
    rows: list[tuple[int, list[str]]]
    data: dict[str, Any]


def make_charts(runs: Sequence[RunData]) -> list[Chart]:
    """Returns the charts of all metrics, those of every step first, in an order that does not depend on the runs."""
    charts = []
    groups = {
        "training": [training_curves(run) for run in runs],
        "validation": [without_bins(run.validations) for run in runs],
        "validation_bins": [of_bins(run.validations) for run in runs],
    }
    for group, curves_of_runs in groups.items():
        names = {name for curves in curves_of_runs for name in curves}
        known = [name for name in CHART_STYLES if name in names]
        for metric in known + sorted(names - set(known), key=natural_order):
            curves = {
                run.name: curves[metric] for run, curves in zip(runs, curves_of_runs, strict=True) if metric in curves
            }
            charts.append(make_chart(metric, group, curves))
    return charts


def natural_order(metric: str) -> tuple[str, int]:
    """Returns what metrics are sorted by: parts of the timesteps by the first of them, all others by their names."""
    held_out = HELD_OUT_BIN.fullmatch(metric)
    return (held_out[1], int(held_out[2])) if held_out else (metric, 0)


def training_curves(run: RunData) -> dict[str, Curve]:
    """Returns the metrics of every step, without a prior loss in a run without class images."""
    curves = {name: curve for name, curve in run.curves.items() if not name.startswith("validation/")}
    return {name: curve for name, curve in curves.items() if name != "prior_loss" or run.config.prior.uses_class_images}


def of_bins(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Returns the held-out losses of parts of the timesteps."""
    return {name: curve for name, curve in curves.items() if HELD_OUT_BIN.fullmatch(name)}


def without_bins(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Returns all metrics but the held-out losses of parts of the timesteps."""
    return {name: curve for name, curve in curves.items() if not HELD_OUT_BIN.fullmatch(name)}


def make_chart(metric: str, group: str, curves: Mapping[str, Curve]) -> Chart:
    """Makes a metric's chart.

    Args:
        curves: name of a run -> its curve.
    """
    style = chart_style(metric)
    lines = {name: smoothed(curve) if style.smooth else keep_extremes(curve) for name, curve in curves.items()}
    series = [make_series(name, curve, lines[name], style) for name, curve in curves.items()]
    steps = table_steps(list(lines.values()))
    rows = [(step, [format_value(value_at(line, step)) for line in lines.values()]) for step in steps]
    data = {"title": style.title, "log": style.logarithmic, "zero": style.zero, "series": series}
    span = max(map(smoothing_span, curves.values())) if style.smooth else 0
    return Chart(metric, group, style, span, list(curves), rows, data)


def make_series(run: str, curve: Curve, line: Curve, style: ChartStyle) -> dict[str, Any]:
    """Returns a run's data: the curve that is read, the noise behind it, and dots where there are few values."""
    points = curve if len(curve.steps) <= FEW_POINTS and not style.smooth else None
    raw = keep_extremes(curve) if style.smooth else None
    return {"run": run, "smooth": columns(line), "raw": columns(raw), "points": columns(points)}


def columns(curve: Curve | None) -> list[list[float]]:
    """Returns steps and values, rounded, for JSON."""
    if curve is None:
        return [[], []]
    values = [float(np.format_float_positional(value, DIGITS, fractional=False)) for value in curve.values]
    return [curve.steps.tolist(), values]


def format_value(value: float | None) -> str:
    """Formats a value of the table."""
    return "–" if value is None else f"{value:.4g}"
