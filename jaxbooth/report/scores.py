"""The evaluation of a run: a table with intervals, a chart of each metric, and every prompt with its images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth.errors import UserError
from jaxbooth.metrics.definitions import RESULT_FORMAT
from jaxbooth.report.charts import interval_spec, run_colour
from jaxbooth.report.images import EmbeddedImage, embed, fitting_size, read_image
from jaxbooth.report.run_data import EVALUATION, RunData
from jaxbooth.storage.paths import relative_file_name

BUDGET = 3_000_000  # bytes of WebP for all evaluation images of a page
LARGEST = 256  # pixels
MAX_IMAGES = 600
PROBES = 6
ARROWS = {"higher": "↑", "lower": "↓"}
MINUS = "\N{MINUS SIGN}"
BASE_COLOUR = "var(--base)"


class ScoreCell(NamedTuple):
    """A mean with its interval, and the difference to the base model's, as text.

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
    measures: str
    text: str
    cells: list[ScoreCell | None]
    chart: dict[str, Any]


class ModelColumn(NamedTuple):
    """A column of the table."""

    label: str
    colour: str


class ModelImages(NamedTuple):
    """A model's images of a prompt, and the metrics on them, title -> value."""

    model: ModelColumn
    images: list[EmbeddedImage]
    metrics: dict[str, str]


class PromptScores(NamedTuple):
    """A prompt, and each model's images of it."""

    prompt: str
    group: str
    models: list[ModelImages]


class ScoresTable(NamedTuple):
    """The evaluation of a run.

    Attributes:
        settings: name -> value, as text.
        skipped: why metrics are missing, in sentences.
    """

    models: list[ModelColumn]
    metrics: list[MetricRow]
    prompts: list[PromptScores]
    settings: dict[str, str]
    skipped: list[str]


def read_scores(run: RunData, number: int, runs: int) -> ScoresTable | None:
    """Returns a run's evaluation; None if it has none.

    Args:
        number: of the run in the report, which decides its colour.
        runs: how many runs share the page.

    Raises:
        UserError: the file is not an evaluation, or one of another version.
    """
    results, path = run.evaluation, run.folder.root / EVALUATION
    if results is None:
        return None
    if results.get("format") != RESULT_FORMAT:
        raise UserError(
            f"{path} is not an evaluation of format {RESULT_FORMAT}; make it again with `jaxbooth evaluate`."
        )
    try:
        models = model_columns(results["models"], number)
        definitions = results["definitions"]
        return ScoresTable(
            models=models,
            metrics=[metric_row(name, definitions[name], results["models"], models) for name in definitions],
            prompts=prompt_scores(results, models, path.parent, runs),
            settings={key.replace("_", " "): str(value) for key, value in results["settings"].items() if value != ""},
            skipped=[f"{name}: {reason}" for name, reason in results.get("skipped", {}).items()],
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        cause = f"{type(error).__name__} {error}"
        raise UserError(f"{path} is incomplete ({cause}); make it again with `jaxbooth evaluate`.") from None


def model_columns(models: Sequence[dict[str, Any]], number: int) -> list[ModelColumn]:
    """Labels and colours the models: the base is grey, the run itself has its own colour."""
    colours = iter(run_colour(number + index) for index in range(len(models)))
    return [ModelColumn(model["label"], BASE_COLOUR if model["name"] == "base" else next(colours)) for model in models]


def metric_row(
    name: str, definition: dict[str, Any], results: Sequence[dict[str, Any]], models: Sequence[ModelColumn]
) -> MetricRow:
    """Returns the row of a metric.

    Args:
        results: of each model.
    """
    cells: list[ScoreCell | None] = []
    chart_rows = []
    for model, result in zip(models, results, strict=True):
        value = result["metrics"].get(name)
        cells.append(score_cell(value, result.get("differences", {}).get(name)) if value else None)
        if value:
            interval = {key: value.get(key) for key in ("mean", "low", "high")}
            chart_rows.append({"model": model.label, "colour": model.colour} | interval)
    return MetricRow(
        name,
        definition["title"],
        ARROWS.get(definition["better"], ""),
        definition["measures"],
        definition.get("text", ""),
        cells,
        interval_spec(chart_rows),
    )


def score_cell(value: dict[str, Any], difference: dict[str, Any] | None) -> ScoreCell:
    """Writes a mean, its interval and its difference to the base model."""
    mean, interval = f"{value['mean']:.3f}", format_interval(value)
    if difference is None:
        return ScoreCell(mean, interval, "", differs=False)
    known = difference["low"] is not None and difference["high"] is not None
    differs = known and difference["low"] * difference["high"] > 0
    text = f"{difference['mean']:+.3f} {format_interval(difference, '+')}".strip()
    return ScoreCell(mean, interval, text.replace("-", MINUS), differs)


def format_interval(value: dict[str, Any], sign: str = "") -> str:
    """Writes an interval, or nothing if it is unknown."""
    if value.get("low") is None or value.get("high") is None:
        return ""
    return f"[{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def prompt_scores(
    results: dict[str, Any], models: Sequence[ModelColumn], folder: Path, runs: int
) -> list[PromptScores]:
    """Puts the models' images of the same prompt side by side, as many and as large as fit into a page."""
    columns = [model["prompts"] for model in results["models"]]
    rows = list(zip(*columns, strict=False))
    titles = {name: definition["title"] for name, definition in results["definitions"].items()}
    per_cell = max(1, MAX_IMAGES // max(1, runs * len(rows) * len(columns)))
    source = str(folder / EVALUATION.name)

    def paths_of(cell: dict[str, Any]) -> list[Path]:
        return [folder / relative_file_name(name, source) for name in cell["images"][:per_cell]]

    paths = [path for row in rows for cell in row for path in paths_of(cell)]
    probes = [image for path in paths[:: max(1, len(paths) // PROBES)] if (image := read_image(path))]
    size = fitting_size(probes, len(paths), BUDGET // runs, largest=LARGEST)

    def model_images(model: ModelColumn, cell: dict[str, Any]) -> ModelImages:
        images = [embed(image, size) for path in paths_of(cell) if (image := read_image(path))]
        metrics = {titles.get(name, name): f"{value['mean']:.3f}" for name, value in cell["metrics"].items()}
        return ModelImages(model, images, metrics)

    return [PromptScores(row[0]["prompt"], row[0]["group"], list(map(model_images, models, row))) for row in rows]
