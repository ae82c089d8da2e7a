"""Validation: the same prompts with the same seeds, drawn again and again while the model changes."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxbooth.config import Config
from jaxbooth.data.sheet import sheet
from jaxbooth.params import Params
from jaxbooth.pipeline import Base
from jaxbooth.sampling import Painter, Settings

BATCH = 8  # pictures drawn at once, at most
UNRELATED = "a photo of a red apple"


def validation_prompts(config: Config) -> list[str]:
    """Returns the prompts to watch; by default the subject, the bare class and something unrelated, to show drift."""
    if config.validation.prompts:
        return list(config.validation.prompts)
    prompts = [prompt for subject in config.subjects for prompt in (subject.instance_prompt, subject.class_prompt)]
    return list(dict.fromkeys(prompt for prompt in (*prompts, UNRELATED) if prompt))


@dataclass
class Watch:
    """Draws the validation grid."""

    painter: Painter
    prompts: list[str]
    num: int
    seed: int

    @classmethod
    def make(cls, config: Config, base: Base, mesh: Mesh) -> "Watch":
        """Builds the painter that the configuration asks for."""
        chosen = config.validation
        settings = Settings(chosen.sampler, chosen.steps, chosen.guidance_scale, config.resolution)
        prompts = validation_prompts(config)
        pictures = len(prompts) * chosen.num
        batches = -(-pictures // BATCH)
        painter = Painter(base, mesh, settings, batch=-(-pictures // batches))
        return cls(painter, prompts, chosen.num, config.seed)

    def draw(self, params: dict[str, Params]) -> np.ndarray:
        """Returns (prompts * num, H, W, 3) uint8; picture i of every prompt starts from the same noise."""
        rows = [prompt for prompt in self.prompts for _ in range(self.num)]
        return self.painter(params, rows, self.seed, list(range(self.num)) * len(self.prompts))

    def grid(self, params: dict[str, Params], step: int) -> tuple[Image.Image, dict[str, Any]]:
        """Returns the labelled grid, one prompt a row, and the facts for its text chunk."""
        labels = [prompt for prompt in self.prompts for _ in range(self.num)]
        facts = {"prompts": json.dumps(self.prompts), "seed": self.seed, "step": step}
        return sheet(list(self.draw(params)), labels, self.num), facts | self.painter.settings.facts()
