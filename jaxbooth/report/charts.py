"""Charts: Vega-Lite specifications, drawn in the page by Vega's own scripts.

A curve's data come to it by name ("raw", "smooth", "points"), so that all metrics share a few specifications. Colours
are the page's CSS variables, which follow the reader's light or dark theme without redrawing.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from jaxbooth.errors import UserError

COLOURS = 8  # --run-0 .. --run-7 in style.css
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
# A small or large number is written with an exponent; d3 leaves some labels of a logarithmic axis empty.
NUMBER = (
    "datum.label === '' ? '' : datum.value !== 0 && (abs(datum.value) < 1e-3 || abs(datum.value) >= 1e5)"
    " ? format(datum.value, '.3~e') : format(datum.value, '~g')"
)


def library() -> Any:
    """Imports the charts' library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import vl_convert
    except ImportError:
        raise UserError("the charts of a report need a library: pip install 'jaxbooth[report]'.") from None
    return vl_convert


@cache
def scripts() -> str:
    """Returns what defines `window.vegaEmbed`, and no other name, as a script for inside of an HTML page."""
    bundle = library().javascript_bundle("window.vegaEmbed = vegaEmbed;").replace("</script", "<\\/script")
    return f"(() => {{{bundle}}})();"


def theme() -> dict[str, Any]:
    """Returns how axes and text look."""
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


def curve_chart(names: Sequence[str], scale: str, zero: bool) -> dict[str, Any]:
    """Returns the Vega-Lite specification of a metric over steps.

    Data "raw", "smooth" and "points" hold rows {run, step, value}. Signals: "reading" is the step that is read,
    "shown" the one whose images are shown; each is a vertical line, or null for none.

    Args:
        names: of all runs of the report.
        scale: "linear" or "log".
        zero: whether a linear axis begins at 0.
    """
    colours = {"domain": list(names), "range": [run_colour(number) for number in range(len(names))]}
    hues = {"field": "run", "type": "nominal", "scale": colours, "legend": None}
    beside = {"titleAlign": "right", "titleAnchor": "start", "titleX": -6, "titleY": 6, "titleBaseline": "top"}
    x = {"field": "step", "type": "quantitative", "title": "step", "scale": {"zero": False, "nice": False}}
    x["axis"] = {"tickCount": {"expr": "max(2, floor(width / 80))"}, "format": ",d", "tickMinStep": 1, **beside}
    y = {"field": "value", "type": "quantitative", "title": None}
    y["scale"] = {"type": "log", "nice": False} if scale == "log" else {"type": "linear", "zero": zero}
    y["axis"] = {"tickCount": 5, "labelExpr": NUMBER, "labelOverlap": "greedy"}

    def layer(name: str, mark: dict[str, Any]) -> dict[str, Any]:
        encoding = {"x": x, "y": y, "color": hues}
        return {"data": {"name": name}, "mark": mark | {"clip": False}, "encoding": encoding}

    def upright(signal: str, mark: dict[str, Any]) -> dict[str, Any]:
        steps = [{"calculate": signal, "as": "step"}, {"filter": "isValid(datum.step)"}]
        rule = {"type": "rule", **mark}
        return {"data": {"values": [{}]}, "transform": steps, "mark": rule, "encoding": {"x": x}}

    layers = [
        upright("shown", {"strokeDash": [3, 3], "color": "var(--ink-3)"}),
        upright("reading", {"color": "var(--ink-2)"}),
        layer("raw", {"type": "line", "strokeWidth": 1, "opacity": 0.28}),
        layer("smooth", {"type": "line", "strokeWidth": 2, "strokeCap": "round", "strokeJoin": "round"}),
        layer("points", {"type": "point", "filled": True, "size": 40, "opacity": 1}),
    ]
    params = [{"name": "reading", "value": None}, {"name": "shown", "value": None}]
    return {"width": "container", "height": 200, "params": params, "layer": layers, "config": theme()}


def interval_chart(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the Vega-Lite specification of a metric's mean and interval for each model.

    Args:
        rows: {model, colour, mean, low, high}; low and high may be None.
    """
    axis = {"tickCount": 4, "labelExpr": NUMBER, "grid": True, "domain": False}
    x = {"type": "quantitative", "title": None, "scale": {"zero": False, "padding": 8}, "axis": axis}
    y = {"field": "model", "type": "nominal", "sort": [row["model"] for row in rows], "axis": None}
    hue = {"field": "colour", "type": "nominal", "scale": None}
    known = [{"filter": "isValid(datum.low) && isValid(datum.high)"}]
    whisker = {"x": {"field": "low", **x}, "x2": {"field": "high"}, "y": y, "color": hue}
    mean = {"x": {"field": "mean", **x}, "y": y, "color": hue}
    layers = [
        {"transform": known, "mark": {"type": "rule", "strokeWidth": 2}, "encoding": whisker},
        {"mark": {"type": "point", "filled": True, "size": 70, "opacity": 1}, "encoding": mean},
    ]
    size = {"width": "container", "height": 24 * max(1, len(rows))}
    return {**size, "data": {"values": list(rows)}, "layer": layers, "config": theme()}
