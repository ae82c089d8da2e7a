"""A small evaluation while a run trains: a few of the paper's prompts, and the class."""

from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.sampling import ImageSampler
from jaxbooth.config.run_config import Config
from jaxbooth.evaluation.images import places
from jaxbooth.metrics.bootstrap import estimate
from jaxbooth.metrics.prompts import TEMPLATES, Entry, class_entries, name_subject, subject_entries, template_kind
from jaxbooth.metrics.scorer import Measure, open_extractors
from jaxbooth.params import Params

Assess = Callable[[dict[str, Params]], dict[str, float]]  # params of all components -> eval/<metric>: mean


def few_entries(config: Config) -> list[Entry]:
    """Returns every k-th of the paper's prompts for each subject, and the class prompts."""
    entries = []
    for number, subject in enumerate(config.subjects):
        named = name_subject(subject)
        templates = TEMPLATES[template_kind(named.noun)]
        chosen = np.linspace(0, len(templates) - 1, min(config.evaluation.num_prompts, len(templates)))
        entries += subject_entries([templates[round(index)] for index in chosen], named, number)
    return entries + class_entries(config.subjects)


def small_evaluation(
    config: Config, mesh: Mesh, image_sampler: ImageSampler, shown: Sequence[Sequence[np.ndarray]]
) -> Assess:
    """Opens the extractors, and returns what draws and measures.

    Args:
        shown: each subject's training pictures, (H, W, 3) uint8.

    Raises:
        UserError: see `open_extractors`.
    """
    chosen, entries = config.evaluation, few_entries(config)
    measure = Measure(open_extractors(config, chosen.clip, chosen.dino, mesh), entries, shown)
    wanted = places(entries, chosen.num, chosen.class_num)

    def assess(params: dict[str, Params]) -> dict[str, float]:
        prompts = [entries[prompt].prompt for prompt, _ in wanted]
        drawn = image_sampler.generate(params, prompts, config.seed, [number for _, number in wanted])
        scores = measure(by_entry(list(drawn), [prompt for prompt, _ in wanted], len(entries)))
        return {f"eval/{name}": estimate(each).mean for name, each in scores.items()}

    return assess


def by_entry(drawn: Sequence[np.ndarray], numbers: Sequence[int], count: int) -> list[list[np.ndarray]]:
    """Groups pictures by the number of their prompt."""
    groups: list[list[np.ndarray]] = [[] for _ in range(count)]
    for pixels, number in zip(drawn, numbers, strict=True):
        groups[number].append(pixels)
    return groups
