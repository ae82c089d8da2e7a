"""`evaluation.json`: what was measured, how, and how sure it is."""

from collections.abc import Sequence
from typing import Any

from jaxbooth.evaluation.images import Cell, image_name
from jaxbooth.metrics.bootstrap import bootstrap_mean
from jaxbooth.metrics.definitions import DEFINITIONS, Scores
from jaxbooth.metrics.prompts import EvalPrompt

FORMAT = 1


def metric_means(scores: Scores) -> dict[str, Any]:
    """Returns the mean of each metric over all its prompts, with its interval."""
    return {name: bootstrap_mean(each).facts() for name, each in scores.items()}


def differences(scores: Scores, base: Scores) -> dict[str, Any]:
    """Returns how far each metric is from the base model's on the same prompts and seeds.

    Paired, so that what both have in common does not widen the interval.
    """
    return {
        name: bootstrap_mean([ours - theirs for ours, theirs in zip(scores[name], base[name], strict=True)]).facts()
        for name in scores
    }


def prompt_results(
    entries: Sequence[EvalPrompt], wanted: Sequence[Cell], scores: Scores, folder: str
) -> list[dict[str, Any]]:
    """Returns each prompt with its images and its own means.

    Args:
        folder: of the images, relative to the result.
    """
    found, seen = [], {"subject": 0, "class": 0}
    for number, entry in enumerate(entries):
        own = {name: each for name, each in scores.items() if DEFINITIONS[name].group == entry.group}
        means = {name: bootstrap_mean([each[seen[entry.group]]]).facts() for name, each in own.items()}
        seen[entry.group] += 1
        images = [f"{folder}/{image_name(place)}" for place in wanted if place[0] == number]
        found.append({"prompt": entry.prompt, "group": entry.group, "images": images, "metrics": means})
    return found
