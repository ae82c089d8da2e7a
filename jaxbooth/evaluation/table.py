"""The terminal's table of an evaluation."""

from typing import Any

from rich.measure import Measurement
from rich.table import Table

from jaxbooth.console import console, is_main

WIDEST = 10_000  # characters; a terminal wraps what it has no room for
ARROWS = {"higher": "↑", "lower": "↓"}


def print_table(found: dict[str, Any]) -> None:
    """Prints a row for each metric and a column for each model: mean and 95 % interval."""
    if not is_main():
        return
    table = Table(caption="mean [95 % interval]; * differs from the base model's on the same seeds", box=None)
    table.add_column("")
    for model in found["models"]:
        table.add_column(model["label"], justify="right", no_wrap=True)
    for name, definition in found["definitions"].items():
        both = [(model["metrics"][name], model.get("differences", {}).get(name)) for model in found["models"]]
        table.add_row(f"{definition['title']} {ARROWS[definition['better']]}", *(cell(*pair) for pair in both))
    needed = Measurement.get(console, console.options.update(width=WIDEST), table).maximum
    console.print(table, width=max(needed, console.width), crop=False)


def cell(estimate: dict[str, Any], difference: dict[str, Any] | None) -> str:
    """Returns a mean with its interval, marked where zero lies outside the difference's."""
    if estimate["low"] is None:
        return f"{estimate['mean']:.3f}"
    differs = difference is not None and difference["low"] is not None and difference["low"] * difference["high"] > 0
    return f"{estimate['mean']:.3f} \\[{estimate['low']:.3f}, {estimate['high']:.3f}]{'*' if differs else ' '}"
