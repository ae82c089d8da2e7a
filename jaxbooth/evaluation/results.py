"""`evaluation.json`: what was measured, how, and how sure it is."""

from collections.abc import Sequence
from typing import Any

from jaxbooth.evaluation.images import Place, picture_name
from jaxbooth.metrics.bootstrap import estimate
from jaxbooth.metrics.definitions import DEFINITIONS, Scores
from jaxbooth.metrics.prompts import Entry

FORMAT = 1


def overall(scores: Scores) -> dict[str, Any]:
    """Returns the mean of each metric over all its prompts, with its interval."""
    return {name: estimate(each).facts() for name, each in scores.items()}


def differences(scores: Scores, base: Scores) -> dict[str, Any]:
    """Returns how far each metric is from the base model's on the same prompts and seeds.

    Paired, so that what both have in common does not widen the interval.
    """
    return {
        name: estimate([ours - theirs for ours, theirs in zip(scores[name], base[name], strict=True)]).facts()
        for name in scores
    }


def by_prompt(entries: Sequence[Entry], wanted: Sequence[Place], scores: Scores, folder: str) -> list[dict[str, Any]]:
    """Returns each prompt with its pictures and its own means.

    Args:
        folder: of the pictures, relative to the result.
    """
    found, seen = [], {"subject": 0, "class": 0}
    for number, entry in enumerate(entries):
        own = {name: each for name, each in scores.items() if DEFINITIONS[name].group == entry.group}
        means = {name: estimate([each[seen[entry.group]]]).facts() for name, each in own.items()}
        seen[entry.group] += 1
        pictures = [f"{folder}/{picture_name(place)}" for place in wanted if place[0] == number]
        found.append({"prompt": entry.prompt, "group": entry.group, "pictures": pictures, "metrics": means})
    return found
