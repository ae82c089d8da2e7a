"""A small evaluation while a run trains: a few of the paper's prompts, and the class."""

from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.sampling import ImageSampler
from jaxbooth.config.run_config import Config
from jaxbooth.evaluation.images import cells
from jaxbooth.metrics.bootstrap import bootstrap_mean
from jaxbooth.metrics.prompts import TEMPLATES, EvalPrompt, class_prompts, name_subject, subject_prompts, template_set
from jaxbooth.metrics.scorer import Scorer, load_feature_models
from jaxbooth.params import Params

EvaluateParams = Callable[[dict[str, Params]], dict[str, float]]  # params of all components -> eval/<metric>: mean


def few_prompts(config: Config) -> list[EvalPrompt]:
    """Returns every k-th of the paper's prompts for each subject, and the class prompts."""
    entries = []
    for number, subject in enumerate(config.subjects):
        named = name_subject(subject)
        templates = TEMPLATES[template_set(named.noun)]
        chosen = np.linspace(0, len(templates) - 1, min(config.evaluation.num_prompts, len(templates)))
        entries += subject_prompts([templates[round(index)] for index in chosen], named, number)
    return entries + class_prompts(config.subjects)


def training_evaluation(
    config: Config, mesh: Mesh, image_sampler: ImageSampler, shown: Sequence[Sequence[np.ndarray]]
) -> EvaluateParams:
    """Opens the extractors, and returns what draws and measures.

    Args:
        shown: each subject's training images, (H, W, 3) uint8.

    Raises:
        UserError: see `load_feature_models`.
    """
    chosen, entries = config.evaluation, few_prompts(config)
    measure = Scorer(load_feature_models(config, chosen.clip, chosen.dino, mesh), entries, shown)
    wanted = cells(entries, chosen.num, chosen.class_num)

    def assess(params: dict[str, Params]) -> dict[str, float]:
        prompts = [entries[prompt].prompt for prompt, _ in wanted]
        drawn = image_sampler.generate(params, prompts, config.seed, [number for _, number in wanted])
        scores = measure(by_entry(list(drawn), [prompt for prompt, _ in wanted], len(entries)))
        return {f"eval/{name}": bootstrap_mean(each).mean for name, each in scores.items()}

    return assess


def by_entry(drawn: Sequence[np.ndarray], numbers: Sequence[int], count: int) -> list[list[np.ndarray]]:
    """Groups images by the number of their prompt."""
    groups: list[list[np.ndarray]] = [[] for _ in range(count)]
    for pixels, number in zip(drawn, numbers, strict=True):
        groups[number].append(pixels)
    return groups
