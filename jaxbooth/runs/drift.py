"""Two figures of every sample grid: how near the subject is, and how far the class has moved from the base model's.

Neither needs another network. Pixel distance to the base model's images hardly tells drift from noise; distance
between their latents does.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxbooth.base.vae import ImageEncoder
from jaxbooth.distributed.run_scope import is_writer
from jaxbooth.errors import UserError
from jaxbooth.models.vae import AnyVAEConfig, scale_latents
from jaxbooth.storage.files import write_bytes

SUBJECT_DISTANCE, DRIFT = "eval/subject_distance", "eval/drift"


def nearest_distance(images: np.ndarray, references: np.ndarray) -> float:
    """Returns the median over images of the mean squared distance to the nearest reference.

    Args:
        images, references: (n, H, W, 3) uint8; the distance is that of pixels in [0, 1].
    """
    known = references.astype(np.float32) / 255
    nearest = [np.square(image.astype(np.float32) / 255 - known).mean(axis=(1, 2, 3)).min() for image in images]
    return float(np.median(nearest))


def latent_distance(latents: np.ndarray, base: np.ndarray) -> float:
    """Returns the mean squared distance of scaled latents, (n, h, w, c), to those of the base model's images."""
    return float(np.mean(np.square(latents - base)))


@dataclass
class DriftMeter:
    """Measures both distances of a run.

    Attributes:
        references: (n, H, W, 3) uint8 training images.
        encode: the VAE's encoder.
        vae_config: says how its latents are scaled.
        path: file for the latents of the base model's class images, for runs that go on.
    """

    references: np.ndarray
    encode: ImageEncoder
    vae_config: AnyVAEConfig
    path: Path
    base: np.ndarray | None = None

    def __call__(self, subject: np.ndarray, classes: np.ndarray, step: int) -> dict[str, float]:
        """Returns the metrics of (n, H, W, 3) uint8 images; step 0 is the base model."""
        metrics = {SUBJECT_DISTANCE: nearest_distance(subject, self.references)} if len(subject) else {}
        if not len(classes):
            return metrics
        latents = self.latents(classes)
        if step == 0:
            self.keep(latents)
        base = self.base_latents()
        if base is not None and base.shape == latents.shape:  # other prompts may be sampled since
            metrics[DRIFT] = latent_distance(latents, base)
        return metrics

    def base_latents(self) -> np.ndarray | None:
        """Returns the latents of the base model's class images, once there are any: those of step 0 for ever.

        Raises:
            UserError: their file is damaged.
        """
        if self.base is None and self.path.exists():
            self.base = read_latents(self.path)
        return self.base

    def latents(self, images: np.ndarray) -> np.ndarray:
        """Encodes images to the scaled means of their posteriors."""
        size = self.encode.batch_size
        parts = [self.encode(images[i : i + size, None]).mean[:, 0] for i in range(0, len(images), size)]
        return np.asarray(scale_latents(self.vae_config, jnp.concatenate(parts)))

    def keep(self, latents: np.ndarray) -> None:
        """Keeps the base model's latents, in memory and on disk."""
        self.base = latents
        if is_writer():
            content = io.BytesIO()
            np.save(content, latents)
            write_bytes(self.path, content.getvalue())


def read_latents(path: Path) -> np.ndarray:
    """Reads a `.npy` file as float32.

    Raises:
        UserError: it is damaged.
    """
    try:
        return np.asarray(np.lib.format.read_array(io.BytesIO(path.read_bytes())), np.float32)
    except (ValueError, EOFError, TypeError, SyntaxError, MemoryError):
        raise UserError(f"{path} is damaged; put it back, or remove it to go on without measuring drift.") from None
