"""Curves of metrics over steps, thinned for a screen: raw curves keep their extremes, smooth ones their shape."""

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxbooth.runs.metric_writer import read_log

RAW_BINS = 300  # of a raw curve; each keeps its least and its largest value
SMOOTH_BINS = 400  # of a smooth curve
SMOOTHING = 1 / 50  # standard deviation of the smoothing kernel, as a share of the curve's length
TABLE_ROWS = 20


class Curve(NamedTuple):
    """One metric of one run.

    Attributes:
        steps: (n,) int64, rising.
        values: (n,) float64, finite.
    """

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class ChartStyle:
    """How a metric is shown.

    Attributes:
        title: heading.
        caption: what it measures, in a few words.
        smooth: whether the curve is so noisy that it is smoothed.
        logarithmic: whether the scale switch acts on it.
        zero: whether the axis begins at 0.
    """

    title: str
    caption: str = ""
    smooth: bool = False
    logarithmic: bool = False
    zero: bool = False


CHART_STYLES = {
    "loss": ChartStyle("Loss", "all terms with their weights", smooth=True, logarithmic=True),
    "instance_loss": ChartStyle("Instance loss", "on the subject's images", smooth=True, logarithmic=True),
    "prior_loss": ChartStyle("Prior loss", "on the class images, before its weight", smooth=True, logarithmic=True),
    "output_preservation_loss": ChartStyle(
        "Output preservation", "on rows without the identifier, before its weight", smooth=True, logarithmic=True
    ),
    "blank_prompt_loss": ChartStyle(
        "Blank prompt", "on rows with the empty caption, before its weight", smooth=True, logarithmic=True
    ),
    "outside_mask_loss": ChartStyle(
        "Outside the masks", "against the base model, before its weight", smooth=True, logarithmic=True
    ),
    "weight_anchor": ChartStyle("Weight anchor", "squared change of all trained weights", zero=True),
    "grad_norm": ChartStyle("Gradient norm", "before clipping", smooth=True, logarithmic=True),
    "learning_rate": ChartStyle("Learning rate", zero=True),
    "images_per_second": ChartStyle("Images per second", "instance and prior rows", zero=True),
    "peak_memory": ChartStyle("Peak memory", "GiB that a device has held", zero=True),
    "eval/drift": ChartStyle("Drift of the class", "latent distance to the base model's images; lower is better"),
    "validation/subject_loss": ChartStyle(
        "Held-out loss, subject", "on images that are not trained on; lower is better"
    ),
    "validation/class_loss": ChartStyle("Held-out loss, class", "on the base model's class images; lower is better"),
    "eval/subject_distance": ChartStyle("Subject distance", "to the nearest training image; lower is better"),
    "eval/dino": ChartStyle("DINO", "subject fidelity; higher is better"),
    "eval/clip_i": ChartStyle("CLIP-I", "subject fidelity; higher is better"),
    "eval/clip_t": ChartStyle("CLIP-T", "prompt fidelity; higher is better"),
    "eval/pres": ChartStyle("PRES", "class images that look like the subject; lower is better"),
    "eval/div": ChartStyle("DIV", "diversity of the class; higher is better"),
}


HELD_OUT_BIN = re.compile(r"validation/(subject|class)_loss_t(\d+)-(\d+)")


def chart_style(metric: str) -> ChartStyle:
    """Returns how a metric is shown; one that is not listed gets its name as its title."""
    held_out = HELD_OUT_BIN.fullmatch(metric)
    if held_out:
        group, first, last = held_out.groups()
        return ChartStyle(f"{group.capitalize()}, timesteps {first} to {last}", "held-out loss; lower is better")
    return CHART_STYLES.get(metric, ChartStyle(metric.removeprefix("eval/").replace("_", " ").capitalize()))


def read_curves(path: Path) -> dict[str, Curve]:
    """Reads a file of JSON lines into metric -> curve, without unreadable lines and values that are no numbers.

    Raises:
        UserError: it is no file.
    """
    points: dict[str, dict[int, float]] = {}
    for line in read_log(path).entries:
        for name, value in line.values.items():
            if name != "step" and isinstance(value, int | float) and abs(value) <= sys.float_info.max:
                points.setdefault(name, {})[line.step] = float(value)
    return {name: make_curve(values) for name, values in points.items()}


def make_curve(points: Mapping[int, float]) -> Curve:
    """Makes a curve from step -> value."""
    steps = sorted(points)
    return Curve(np.array(steps, np.int64), np.array([points[step] for step in steps], np.float64))


def keep_extremes(curve: Curve, bins: int = RAW_BINS) -> Curve:
    """Keeps the least and the largest value of each of `bins` stretches of a curve, and both ends."""
    if len(curve.steps) <= 2 * bins:
        return curve
    edges = np.linspace(0, len(curve.steps), bins + 1).astype(int)
    indices = {0, len(curve.steps) - 1}
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        stretch = curve.values[start:end]
        indices |= {start + int(stretch.argmin()), start + int(stretch.argmax())}
    kept = sorted(indices)
    return Curve(curve.steps[kept], curve.values[kept])


def smoothed(curve: Curve, bins: int = SMOOTH_BINS) -> Curve:
    """Averages a curve with a Gaussian window, which is truncated and renormalised at both ends."""
    count = min(bins, len(curve.steps))
    edges = np.linspace(0, len(curve.steps), count + 1).astype(int)[:-1]
    sizes = np.diff(np.append(edges, len(curve.steps)))
    means = np.add.reduceat(curve.values, edges) / sizes
    steps = np.add.reduceat(curve.steps, edges) // sizes
    if count > 1:
        steps[[0, -1]] = curve.steps[[0, -1]]
    deviation = max(count * SMOOTHING, 0.5)
    reach = np.arange(-math.ceil(3 * deviation), math.ceil(3 * deviation) + 1)
    kernel = np.exp(-0.5 * np.square(reach / deviation))
    weight = np.convolve(np.ones(count), kernel)[len(reach) // 2 :][:count]
    return Curve(steps, np.convolve(means, kernel)[len(reach) // 2 :][:count] / weight)


def smoothing_span(curve: Curve) -> int:
    """Returns about how many steps a point of the smooth curve averages: four standard deviations of the window."""
    return max(2, round(4 * SMOOTHING * len(curve.steps)))


def table_steps(curves: list[Curve], rows: int = TABLE_ROWS) -> list[int]:
    """Returns the steps of a table of several curves, the first and the last among them."""
    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    return [int(steps[index]) for index in evenly_spread(len(steps), rows)]


def evenly_spread(total: int, most: int) -> list[int]:
    """Returns at most `most` indices below `total`, evenly spread, with both ends."""
    return sorted({round(index) for index in np.linspace(0, total - 1, min(total, most)).tolist()}) if total else []


def value_at(curve: Curve, step: int) -> float | None:
    """Returns the value at the nearest step, or None beyond the curve's ends."""
    if not len(curve.steps) or not curve.steps[0] <= step <= curve.steps[-1]:
        return None
    return float(curve.values[np.abs(curve.steps - step).argmin()])
