"""Measures a run beside its base model: the paper's metrics, and how far the class has moved."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.run_config import Config, resolve_paths
from jaxbooth.data.image_grid import image_grid
from jaxbooth.metrics.definitions import Scores
from jaxbooth.metrics.prompts import by_prompt, cells, few_prompts
from jaxbooth.metrics.scorer import Scorer, load_feature_models, reference_images
from jaxbooth.params import Params
from jaxbooth.pipeline import Pipeline
from jaxbooth.runs.drift import DriftMeter, latent_distance
from jaxbooth.weights.source import Source

PROMPTS = 8  # of the paper's, evenly spread over its list; one image of each
CLASS_IMAGES = 8
SAMPLER_STEPS = 8
SEED = 1000  # of the measured images, the same for all runs
SHOWN = 4  # images of the subject and of the class that are kept


class Measurement(NamedTuple):
    """What one model scores.

    Attributes:
        metrics: name -> mean; drift is missing for the base model.
        images: the first of the subject and of the class, in a row.
    """

    metrics: dict[str, float]
    images: Image.Image


class Measurer:
    """Measures the runs of one task. Programs and features of what stays are computed once.

    Attributes:
        base: what the base model scores.
    """

    def __init__(self, config: Config):
        """Measures the base model.

        Args:
            config: of any run of the task.
        """
        config = resolve_paths(config)
        pipeline = Pipeline.load(config.model)
        self.prompts = few_prompts(config.subjects, PROMPTS)
        self.cells = cells(self.prompts, 1, CLASS_IMAGES)
        defaults = pipeline.defaults
        sampling = SamplingConfig(defaults.sampler, SAMPLER_STEPS, defaults.guidance_scale, pipeline.resolution)
        encoded = pipeline.encode_ahead([sampling.negative_prompt, *(prompt.text for prompt in self.prompts)])
        self.sampler = ImageSampler(pipeline.base, pipeline.mesh, sampling, len(self.cells), True, encoded)
        models = load_feature_models(None, None, Source(config.model), pipeline.mesh)
        references = reference_images(config.subjects, pipeline.resolution)
        self.scorer = Scorer(models, self.prompts, references)
        encoder = ImageEncoder(pipeline.base, pipeline.params["vae"], pipeline.mesh)
        self.drift_meter = DriftMeter(np.stack(references[0]), encoder, pipeline.base.vae_config, Path())
        self.base_latents: np.ndarray | None = None
        self.base = self.measure(pipeline.params)

    def measure(self, params: dict[str, Params]) -> Measurement:
        """Generates images and scores them; the first call is about the base model."""
        texts = [self.prompts[cell.prompt].text for cell in self.cells]
        images = self.sampler.generate(params, texts, SEED, [cell.image for cell in self.cells])
        groups = by_prompt(list(images), self.cells, len(self.prompts))
        metrics = mean_scores(self.scorer.score(groups))
        latents = self.drift_meter.latents(np.stack(groups[-1]))
        if self.base_latents is None:
            self.base_latents = latents
        else:
            metrics["drift"] = latent_distance(latents, self.base_latents)
        shown = [*images[:SHOWN], *groups[-1][:SHOWN]]
        return Measurement(metrics, image_grid(shown, [""] * len(shown), len(shown), lines=0))

    def measure_run(self, run_dir: str | Path) -> Measurement:
        """Measures the newest checkpoint of a run."""
        return self.measure(Pipeline.load(run_dir).params)


def mean_scores(scores: Scores) -> dict[str, float]:
    """Returns the mean of each metric; of distances between images, without those of an image to itself."""
    return {name: mean_of(arrays) for name, arrays in scores.items()}


def mean_of(arrays: Sequence[np.ndarray]) -> float:
    """Returns the mean over prompts of (n,) scores or (n, n) distances."""
    if arrays[0].ndim == 1:
        return float(np.concatenate(arrays).mean())
    return float(np.mean([pairs[~np.eye(len(pairs), dtype=bool)].mean() for pairs in arrays]))


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    """Returns metrics for JSON."""
    return {name: round(value, 5) for name, value in metrics.items()}
