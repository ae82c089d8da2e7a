"""An evaluation for a reader: the table with intervals, a chart of each metric, and every prompt with its images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth.errors import UserError
from jaxbooth.report.charts import interval_chart, run_colour
from jaxbooth.report.images import EmbeddedImage, embed, fitting_size, read_image
from jaxbooth.report.run_data import EVALUATION, RunData
from jaxbooth.storage.paths import relative_file_name

FORMAT = 2
BUDGET = 3_000_000  # bytes of WebP for all evaluation images of a page
LARGEST = 256  # pixels
MAX_IMAGES = 600
ARROWS = {"higher": "↑", "lower": "↓"}
MINUS = "\N{MINUS SIGN}"
BASE_COLOUR = "var(--base)"


class ScoreCell(NamedTuple):
    """A mean with its interval, and the difference to the base model's, in words.

    Attributes:
        differs: whether zero lies outside of the difference's interval.
    """

    mean: str
    interval: str
    difference: str
    differs: bool


class MetricRow(NamedTuple):
    """A row of the table.

    Attributes:
        cells: of each model; None where a model has no value.
        chart: Vega-Lite specification.
    """

    name: str
    title: str
    arrow: str
    what: str
    text: str
    cells: list[ScoreCell | None]
    chart: dict[str, Any]


class ModelColumn(NamedTuple):
    """A column of the table."""

    label: str
    colour: str


class ModelImages(NamedTuple):
    """What a model drew for a prompt, and what was measured there, title -> value."""

    model: ModelColumn
    images: list[EmbeddedImage]
    metrics: dict[str, str]


class PromptScores(NamedTuple):
    """A prompt, and what each model drew for it."""

    prompt: str
    group: str
    drawn: list[ModelImages]


class Evaluation(NamedTuple):
    """All of it.

    Attributes:
        settings: name -> value, in words.
        skipped: why a metric is missing, in sentences.
    """

    models: list[ModelColumn]
    metrics: list[MetricRow]
    prompts: list[PromptScores]
    settings: dict[str, str]
    skipped: list[str]


def read_scores(run: RunData, number: int, runs: int) -> Evaluation | None:
    """Returns a run's evaluation, or None where there is none.

    Args:
        number: of the run in the report, which decides its colour.
        runs: how many runs share the page.

    Raises:
        UserError: the file is not an evaluation, or one of another version.
    """
    found, path = run.evaluation, run.folder.root / EVALUATION
    if found is None:
        return None
    if found.get("format") != FORMAT:
        raise UserError(f"{path} is not an evaluation of format {FORMAT}; make it again with `jaxbooth evaluate`.")
    try:
        models = model_columns(found["models"], number)
        return Evaluation(
            models=models,
            metrics=[metric_row(name, each, found["models"], models) for name, each in found["definitions"].items()],
            prompts=prompt_scores(found, models, path.parent, runs),
            settings={key.replace("_", " "): str(value) for key, value in found["settings"].items() if value != ""},
            skipped=[f"{name}: {reason}" for name, reason in found.get("skipped", {}).items()],
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__} {error}"
        raise UserError(f"{path} is incomplete ({what}); make it again with `jaxbooth evaluate`.") from None


def model_columns(found: Sequence[dict[str, Any]], number: int) -> list[ModelColumn]:
    """Names and colours the models: the base is grey, the run itself has its own colour."""
    colours = iter(run_colour(number + index) for index in range(len(found)))
    return [ModelColumn(each["label"], BASE_COLOUR if each["name"] == "base" else next(colours)) for each in found]


def metric_row(
    name: str, definition: dict[str, Any], found: Sequence[dict[str, Any]], models: Sequence[ModelColumn]
) -> MetricRow:
    """Returns the row of a metric."""
    values = [each["metrics"].get(name) for each in found]
    differences = [each.get("differences", {}).get(name) for each in found]
    cells = [score_cell(*pair) if pair[0] else None for pair in zip(values, differences, strict=True)]
    rows = [
        {"model": model.label, "colour": model.colour} | {key: value.get(key) for key in ("mean", "low", "high")}
        for model, value in zip(models, values, strict=True)
        if value
    ]
    words = (
        definition["title"],
        ARROWS.get(definition["better"], ""),
        definition["measures"],
        definition.get("text", ""),
    )
    return MetricRow(name, *words, cells, interval_chart(rows))


def score_cell(value: dict[str, Any], difference: dict[str, Any] | None) -> ScoreCell:
    """Writes a mean, its interval and its difference to the base model."""
    mean, interval = f"{value['mean']:.3f}", between(value)
    if difference is None:
        return ScoreCell(mean, interval, "", differs=False)
    known = difference["low"] is not None and difference["high"] is not None
    differs = known and difference["low"] * difference["high"] > 0
    words = f"{difference['mean']:+.3f} {between(difference, '+')}".strip()
    return ScoreCell(mean, interval, words.replace("-", MINUS), differs)


def between(value: dict[str, Any], sign: str = "") -> str:
    """Writes an interval, or nothing where it is unknown."""
    if value.get("low") is None or value.get("high") is None:
        return ""
    return f"[{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def prompt_scores(found: dict[str, Any], models: Sequence[ModelColumn], folder: Path, runs: int) -> list[PromptScores]:
    """Puts what the models drew for the same prompt side by side, as many and as large as a page can hold."""
    columns = [each["prompts"] for each in found["models"]]
    rows = list(zip(*columns, strict=False))
    titles = {name: definition["title"] for name, definition in found["definitions"].items()}
    each = max(1, MAX_IMAGES // max(1, runs * len(rows) * len(columns)))
    source = str(folder / EVALUATION.name)
    paths = [
        [[folder / relative_file_name(name, source) for name in cell["images"][:each]] for cell in row] for row in rows
    ]
    flat = [path for row in paths for cell in row for path in cell]
    probes = [image for path in flat[:: max(1, len(flat) // 6)] if (image := read_image(path))]
    size = fitting_size(probes, len(flat), BUDGET // runs, largest=LARGEST)

    def drawn(model: ModelColumn, cell: dict[str, Any], files: list[Path]) -> ModelImages:
        shown = [embed(image, size) for path in files if (image := read_image(path))]
        return ModelImages(model, shown, words(cell, titles))

    return [
        PromptScores(row[0]["prompt"], row[0]["group"], list(map(drawn, models, row, images)))
        for row, images in zip(rows, paths, strict=True)
    ]


def words(cell: dict[str, Any], titles: dict[str, str]) -> dict[str, str]:
    """Returns what was measured on one prompt, title -> value."""
    return {titles.get(name, name): f"{value['mean']:.3f}" for name, value in cell["metrics"].items()}
