"""The results of an evaluation: the content of `evaluation.json`, and the table that the terminal shows."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxbooth.console.messages import show_table
from jaxbooth.console.output import console
from jaxbooth.evaluation.images import image_name
from jaxbooth.metrics.bootstrap import bootstrap_mean
from jaxbooth.metrics.definitions import DEFINITIONS, Scores
from jaxbooth.metrics.prompts import Cell, EvalPrompt

WIDEST = 10_000  # characters, more than any table needs
INDENT = 2  # characters before a model under its metric
ARROWS = {"higher": "↑", "lower": "↓"}
CAPTION = "mean [95 % interval]; * differs from the base model's on the same seeds"


def metric_means(scores: Scores) -> dict[str, Any]:
    """Returns the mean of each metric over all its prompts, with its interval."""
    return {name: bootstrap_mean(arrays)._asdict() for name, arrays in scores.items()}


def differences(scores: Scores, base: Scores) -> dict[str, Any]:
    """Returns how far each metric is from the base model's on the same prompts and seeds.

    They are paired, so that variation which both share does not widen the interval.
    """
    changes = {name: [a - b for a, b in zip(scores[name], base[name], strict=True)] for name in scores}
    return metric_means(changes)


def prompt_results(
    prompts: Sequence[EvalPrompt], cells: Sequence[Cell], scores: Scores, folder: str
) -> list[dict[str, Any]]:
    """Returns each prompt with its images and the means of its metrics.

    Args:
        folder: of the images, relative to the result.
    """
    results = []
    position = {"subject": 0, "class": 0}  # of the prompt among those of its group
    for index, prompt in enumerate(prompts):
        names = [name for name in scores if DEFINITIONS[name].group == prompt.group]
        means = metric_means({name: [scores[name][position[prompt.group]]] for name in names})
        position[prompt.group] += 1
        images = [f"{folder}/{image_name(cell)}" for cell in cells if cell.prompt == index]
        results.append({"prompt": prompt.text, "group": prompt.group, "images": images, "metrics": means})
    return results


def print_table(results: dict[str, Any]) -> None:
    """Prints the metrics of each model: mean and 95 % interval.

    A row for each metric and a column for each model; in a terminal too narrow for that, a row for each model under the
    name of the metric.
    """
    wide = wide_table(results)
    needed = Measurement.get(console, console.options.update(width=WIDEST), wide).maximum
    show_table(wide if needed <= console.width else tall_table(results))


def wide_table(results: dict[str, Any]) -> Table:
    """Returns a table of metrics by models."""
    table = Table(caption=CAPTION, box=None)
    table.add_column("")
    for model in results["models"]:
        table.add_column(Text(model["label"]), justify="right", no_wrap=True)
    for name, definition in results["definitions"].items():
        table.add_row(heading(definition), *(value_text(model, name) for model in results["models"]))
    return table


def tall_table(results: dict[str, Any]) -> Group:
    """Returns a table of models under each metric."""
    parts: list[RenderableType] = []
    longest = max(len(model["label"]) for model in results["models"])
    for name, definition in results["definitions"].items():
        table = Table.grid(padding=(0, 2))
        table.add_column(overflow="fold", width=longest + INDENT)
        table.add_column(justify="right", no_wrap=True)
        for model in results["models"]:
            label = Padding(Text(model["label"], overflow="fold"), (0, 0, 0, INDENT))
            table.add_row(label, value_text(model, name))
        parts += [heading(definition), table]
    return Group(*parts, Text(CAPTION))


def heading(definition: dict[str, Any]) -> Text:
    """Returns a metric's title and its better direction."""
    return Text(f"{definition['title']} {ARROWS[definition['better']]}")


def value_text(model: dict[str, Any], name: str) -> Text:
    """Returns a mean with its interval, marked if zero lies outside of the difference's interval."""
    estimate, difference = model["metrics"][name], model.get("differences", {}).get(name)
    if estimate["low"] is None:
        return Text(f"{estimate['mean']:.3f}")
    differs = difference is not None and difference["low"] is not None and difference["low"] * difference["high"] > 0
    return Text(f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]{'*' if differs else ' '}")
