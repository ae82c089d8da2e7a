"""The sample images of all runs, prompt by prompt, with what the page's step slider needs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxbooth.report.charts import run_colour
from jaxbooth.report.images import EmbeddedImage
from jaxbooth.report.run_data import RunData
from jaxbooth.report.sample_grids import choose_size, embed_grids, sampled_with, thin_grids


class PromptRow(NamedTuple):
    """One run's images for one prompt, at the last step at which it drew it."""

    run: int
    name: str
    colour: str
    step: int
    images: list[EmbeddedImage]


class Samples(NamedTuple):
    """All of them.

    Attributes:
        prompts: prompt -> the strips of the runs that drew it.
        steps: at which any run drew.
        left_out: sentences on grids that the page has no room for.
        drawn_with: settings of the sampler, one line for all runs or one for each.
        data: for the page's script; the last images are in the page already, and left out of it.
    """

    prompts: dict[str, list[PromptRow]]
    steps: list[int]
    left_out: list[str]
    drawn_with: list[str]
    data: dict[str, Any]


def collect_samples(runs: Sequence[RunData]) -> Samples | None:
    """Returns the images, or None where no run has any."""
    sides = [run.config.data.resolution for run in runs]
    chosen = thin_grids([run.grids for run in runs])
    if not any(chosen):
        return None
    size = choose_size(chosen, sides)
    found = [embed_grids(grids, side, size) for grids, side in zip(chosen, sides, strict=True)]
    prompts: dict[str, list[PromptRow]] = {}
    images: list[dict[str, Any]] = []
    for number, (run, grids, drawn) in enumerate(zip(runs, chosen, found, strict=True)):
        for prompt, by_step in drawn.items():
            own = [(grid.step, shown) for grid, shown in zip(grids, by_step, strict=True) if shown]
            step, last = own[-1]
            prompts.setdefault(prompt, []).append(PromptRow(number, run.name, run_colour(number), step, last))
            uris = [[each.uri for each in shown] for _, shown in own[:-1]]
            images.append({"prompt": prompt, "run": run.name, "steps": [step for step, _ in own], "uris": uris})
    order = {(prompt, strip.name): None for prompt, strips in prompts.items() for strip in strips}
    by_strip = {(each["prompt"], each["run"]): each for each in images}
    steps = sorted({grid.step for grids in chosen for grid in grids})
    return Samples(
        prompts=prompts,
        steps=steps,
        left_out=left_out(runs, [len(grids) for grids in chosen]),
        drawn_with=drawn_with(runs),
        data={"steps": steps, "strips": [by_strip[key] for key in order]},
    )


def left_out(runs: Sequence[RunData], shown: Sequence[int]) -> list[str]:
    """Says which runs have more grids than the page shows."""
    return [
        f"{run.name}: {count} of {len(run.grids)} sample grids are shown, evenly spread."
        for run, count in zip(runs, shown, strict=True)
        if count < len(run.grids)
    ]


def drawn_with(runs: Sequence[RunData]) -> list[str]:
    """Says what made the images; once, where it is the same for all runs."""
    lines = {
        run.name: ", ".join(f"{key} {value}" for key, value in sampled_with(run.grids[-1]).items())
        for run in runs
        if run.grids
    }
    if len(set(lines.values())) == 1:
        return list(lines.values())[:1]
    return [f"{name}: {line}" for name, line in lines.items()]
