"""The sample images of all runs, prompt by prompt, with the data of the page's step slider."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxbooth.report.charts import run_colour
from jaxbooth.report.images import EmbeddedImage
from jaxbooth.report.run_data import RunData
from jaxbooth.report.sample_grids import choose_size, embed_grids, format_sampling, thin_grids


class PromptRow(NamedTuple):
    """One run's images of one prompt.

    Attributes:
        steps: at which the run sampled the prompt.
        images: of each of these steps.
    """

    run: str
    colour: str
    steps: list[int]
    images: list[list[EmbeddedImage]]


class Samples(NamedTuple):
    """The sample images of the page.

    Attributes:
        prompts: prompt -> the rows of the runs that sampled it.
        steps: at which any run sampled.
        left_out: sentences about grids for which the page has no room.
        sampling: how the images were generated, one line for all runs or one for each.
        data: for the page's script, without the last images, which the page shows.
    """

    prompts: dict[str, list[PromptRow]]
    steps: list[int]
    left_out: list[str]
    sampling: list[str]
    data: dict[str, Any]


def collect_samples(runs: Sequence[RunData]) -> Samples | None:
    """Returns the sample images; None if no run has any."""
    sides = [run.config.data.resolution for run in runs]
    grids = thin_grids([run.grids for run in runs])
    if not any(grids):
        return None
    size = choose_size(grids, sides)
    prompts: dict[str, list[PromptRow]] = {}
    for index, (run, run_grids, side) in enumerate(zip(runs, grids, sides, strict=True)):
        for prompt, by_grid in embed_grids(run_grids, side, size).items():
            sampled = [(grid.step, images) for grid, images in zip(run_grids, by_grid, strict=True) if images]
            row = PromptRow(
                run.name, run_colour(index), [step for step, _ in sampled], [images for _, images in sampled]
            )
            prompts.setdefault(prompt, []).append(row)
    steps = sorted({grid.step for run_grids in grids for grid in run_grids})
    return Samples(
        prompts=prompts,
        steps=steps,
        left_out=left_out(runs, [len(run_grids) for run_grids in grids]),
        sampling=sampling_lines(runs),
        data={"steps": steps, "rows": [row_data(prompt, row) for prompt, rows in prompts.items() for row in rows]},
    )


def row_data(prompt: str, row: PromptRow) -> dict[str, Any]:
    """Returns a row for the page's script."""
    uris = [[image.uri for image in images] for images in row.images[:-1]]
    return {"prompt": prompt, "run": row.run, "steps": row.steps, "uris": uris}


def left_out(runs: Sequence[RunData], counts: Sequence[int]) -> list[str]:
    """Says which runs have more grids than the page shows."""
    return [
        f"{run.name}: {count} of {len(run.grids)} sample grids are shown, evenly spread."
        for run, count in zip(runs, counts, strict=True)
        if count < len(run.grids)
    ]


def sampling_lines(runs: Sequence[RunData]) -> list[str]:
    """Says how the images were generated, once if it is the same for all runs."""
    lines = {run.name: format_sampling(run.grids[-1]) for run in runs if run.grids}
    if len(set(lines.values())) == 1:
        return list(lines.values())[:1]
    return [f"{name}: {line}" for name, line in lines.items()]
