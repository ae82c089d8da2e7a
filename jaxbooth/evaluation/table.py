"""The terminal's table of an evaluation."""

from typing import Any

from rich.console import Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxbooth.console.messages import show
from jaxbooth.console.output import console

WIDEST = 10_000  # characters; what a table wants that may have all
INDENT = 2  # characters before a model under its metric
ARROWS = {"higher": "↑", "lower": "↓"}
CAPTION = "mean [95 % interval]; * differs from the base model's on the same seeds"


def print_table(found: dict[str, Any]) -> None:
    """Prints the metrics of each model: mean and 95 % interval.

    A row for each metric and a column for each model, or, where the terminal is too narrow for that, a row for each
    model under the name of the metric.
    """
    wide = wide_table(found)
    needed = Measurement.get(console, console.options.update(width=WIDEST), wide).maximum
    show(wide if needed <= console.width else tall_table(found))


def wide_table(found: dict[str, Any]) -> Table:
    """Returns a table of metrics by models."""
    table = Table(caption=CAPTION, box=None)
    table.add_column("")
    for model in found["models"]:
        table.add_column(Text(model["label"]), justify="right", no_wrap=True)
    for name, definition in found["definitions"].items():
        table.add_row(heading(definition), *(cell(model, name) for model in found["models"]))
    return table


def tall_table(found: dict[str, Any]) -> Group:
    """Returns a table of models under each metric."""
    parts: list[RenderableType] = []
    for name, definition in found["definitions"].items():
        cells = [(model["label"], cell(model, name)) for model in found["models"]]
        table = Table.grid(padding=(0, 2))
        table.add_column(overflow="fold", width=max(len(label) for label, _ in cells) + INDENT)
        table.add_column(justify="right", no_wrap=True)
        for label, value in cells:
            table.add_row(Padding(Text(label, overflow="fold"), (0, 0, 0, INDENT)), value)
        parts += [heading(definition), table]
    return Group(*parts, Text(CAPTION))


def heading(definition: dict[str, Any]) -> Text:
    """Returns a metric's title and its better direction."""
    return Text(f"{definition['title']} {ARROWS[definition['better']]}")


def cell(model: dict[str, Any], name: str) -> Text:
    """Returns a mean with its interval, marked where zero lies outside the difference's."""
    estimate, difference = model["metrics"][name], model.get("differences", {}).get(name)
    if estimate["low"] is None:
        return Text(f"{estimate['mean']:.3f}")
    differs = difference is not None and difference["low"] is not None and difference["low"] * difference["high"] > 0
    return Text(f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]{'*' if differs else ' '}")
