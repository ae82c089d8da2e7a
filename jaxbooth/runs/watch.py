"""Validation: the same prompts with the same seeds, drawn again and again while the model changes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxbooth.base.model import BaseModel
from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject
from jaxbooth.data.image_grid import image_grid
from jaxbooth.params import Params

BATCH = 8  # images drawn at once, at most
UNRELATED = ("a red apple", "a blue car")


def validation_prompts(config: Config) -> list[str]:
    """Returns the prompts to watch; by default the subject, the bare class and something unrelated, to show drift."""
    if config.validation.prompts:
        return list(config.validation.prompts)
    prompts = [prompt for subject in config.subjects for prompt in (subject.instance_prompt, subject.class_prompt)]
    return list(dict.fromkeys(prompt for prompt in (*prompts, unrelated_prompt(config.subjects)) if prompt))


def unrelated_prompt(subjects: Sequence[Subject]) -> str:
    """Returns the first subject's prompt with another thing in its place: "an emoji of a red apple" for an emoji."""
    prompts = [prompt for subject in subjects for prompt in (subject.class_prompt, subject.instance_prompt) if prompt]
    known = " ".join(prompts).lower()
    thing = next((thing for thing in UNRELATED if thing.split()[-1] not in known), UNRELATED[0])
    medium, of, _ = prompts[0].partition(" of ")
    return f"{medium}{of}{thing}" if of else thing


@dataclass
class ValidationSampler:
    """Draws the validation grid.

    Attributes:
        prompts: of the grid.
        subjects, classes: instance and class prompts, which are drawn for their figures whether shown or not.
        drawn: all of these, those of the grid first.
        images_per_prompt: images of each prompt.
    """

    image_sampler: ImageSampler
    prompts: list[str]
    subjects: list[str]
    classes: list[str]
    drawn: list[str]
    images_per_prompt: int
    seed: int

    @classmethod
    def make(cls, config: Config, base: BaseModel, mesh: Mesh) -> "ValidationSampler":
        """Builds the image_sampler that the configuration asks for."""
        chosen = config.validation
        settings = SamplingConfig(chosen.sampler, chosen.steps, chosen.guidance_scale, config.resolution)
        subjects = list(dict.fromkeys(subject.instance_prompt for subject in config.subjects))
        classes = list(dict.fromkeys(subject.class_prompt for subject in config.subjects if subject.class_prompt))
        prompts = validation_prompts(config)
        drawn = list(dict.fromkeys([*prompts, *subjects, *classes]))
        images = len(drawn) * chosen.images_per_prompt
        batches = -(-images // BATCH)
        image_sampler = ImageSampler(base, mesh, settings, batch_size=-(-images // batches))
        return cls(image_sampler, prompts, subjects, classes, drawn, chosen.images_per_prompt, config.seed)

    def draw(self, params: dict[str, Params]) -> np.ndarray:
        """Returns (prompts, num, H, W, 3) uint8; image i of every prompt starts from the same noise."""
        rows = [prompt for prompt in self.drawn for _ in range(self.images_per_prompt)]
        images = self.image_sampler.generate(
            params, rows, self.seed, list(range(self.images_per_prompt)) * len(self.drawn)
        )
        return images.reshape(-1, self.images_per_prompt, *images.shape[1:])

    def grid(self, drawn: np.ndarray, step: int) -> tuple[Image.Image, dict[str, Any]]:
        """Returns the labelled grid, one prompt a row, and the facts for its text chunk."""
        labels = [prompt for prompt in self.prompts for _ in range(self.images_per_prompt)]
        facts = {"prompts": json.dumps(self.prompts), "seed": self.seed, "step": step}
        shown = drawn[: len(self.prompts)].reshape(-1, *drawn.shape[2:])
        return image_grid(list(shown), labels, self.images_per_prompt), facts | self.image_sampler.config.metadata()

    def subject_and_class(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images under the instance prompts and under the class prompts, each (n, H, W, 3) uint8."""

        def of(prompts: list[str]) -> np.ndarray:
            numbers = np.array([self.drawn.index(prompt) for prompt in prompts], np.intp)
            return drawn[numbers].reshape(-1, *drawn.shape[2:])

        return of(self.subjects), of(self.classes)
