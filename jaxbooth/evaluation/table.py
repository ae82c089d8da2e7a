"""The terminal's table of an evaluation."""

from typing import Any

from rich.table import Table

from jaxbooth.console import console, is_main


def print_table(found: dict[str, Any]) -> None:
    """Prints a row for each model: mean and 95 % interval of each metric, and whether it left the base model's."""
    if not is_main():
        return
    definitions = found["definitions"]
    arrows = {"higher": "↑", "lower": "↓"}
    table = Table(caption="mean [95 % interval]; * differs from the base model's on the same seeds", box=None)
    table.add_column("")
    for definition in definitions.values():
        table.add_column(f"{definition['title']} {arrows[definition['better']]}", justify="right")
    for model in found["models"]:
        changed = model.get("differences", {})
        cells = [cell(model["metrics"][name], changed.get(name)) for name in definitions]
        table.add_row(model["label"], *cells)
    console.print(table)


def cell(estimate: dict[str, Any], difference: dict[str, Any] | None) -> str:
    """Returns a mean with its interval, marked where zero lies outside the difference's."""
    if estimate["low"] is None:
        return f"{estimate['mean']:.3f}"
    differs = difference is not None and difference["low"] is not None and difference["low"] * difference["high"] > 0
    return f"{estimate['mean']:.3f} \\[{estimate['low']:.3f}, {estimate['high']:.3f}]{'*' if differs else ' '}"
