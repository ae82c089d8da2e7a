"""The loss on held-out images while a run trains: of the subject's, and of the class as the base model shows it."""

from functools import cache

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxbooth.base.encoded_prompts import EncodedPrompts
from jaxbooth.base.model import BaseModel, encode_prompts
from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.loss import LossConfig
from jaxbooth.config.run_config import Config
from jaxbooth.console.progress import ProgressBar, progress
from jaxbooth.diffusion.noise import training_schedule
from jaxbooth.distributed.arrays import put
from jaxbooth.params import Params
from jaxbooth.runs.held_out_latents import (
    Shape,
    base_class_images,
    class_prompts,
    encode_held_out,
    group_held_out,
    held_out_captions,
)
from jaxbooth.runs.inputs import RunInputs
from jaxbooth.sharding import batch_sharding, batch_shards, replicated
from jaxbooth.training.held_out_loss import (
    HeldOutImages,
    HeldOutSpec,
    bin_edges,
    bin_timesteps,
    device_rows,
    held_out_losses,
)

SUBJECT_LOSS, CLASS_LOSS = "validation/subject_loss", "validation/class_loss"


class LossProgram:
    """The compiled program for images of one shape.

    Args:
        shape: height and width in pixels, by which a flow model's timesteps may be shifted.
    """

    def __init__(self, base: BaseModel, mesh: Mesh, loss: LossConfig, shape: Shape):
        schedule = training_schedule(base.schedule, loss.timestep_shift, base.image_tokens(*shape))
        spec = HeldOutSpec(base.with_schedule(schedule), mesh, loss.prediction_space or schedule.prediction_type)
        height, width, _ = base.latent_shape(*shape)
        self._mesh = mesh
        self._timesteps = bin_timesteps(schedule.num_train_timesteps)
        self._batch_size = device_rows(height, width) * batch_shards(mesh)

        def program(params: Params, text: TextEmbeddings, images: HeldOutImages, timesteps: jax.Array) -> jax.Array:
            return held_out_losses(spec, params, text, images, timesteps)

        self._program = jax.jit(program, out_shardings=replicated(mesh))

    def rows(self, images: HeldOutImages) -> int:
        """Returns how many times the network sees an image."""
        return len(images.latents) * self._timesteps.size

    def __call__(
        self, params: Params, text: TextEmbeddings, images: HeldOutImages, bar: ProgressBar
    ) -> Float[np.ndarray, "images bins timesteps"]:
        """Returns the loss of each image at each timestep of each bin, float32.

        Args:
            params: of the denoiser.
            text: of all captions.
            images: on the host.
        """
        count, parts = self.rows(images), []
        for start in range(0, count, self._batch_size):
            rows = np.minimum(np.arange(start, start + self._batch_size), count - 1)  # the last one fills the batch
            image, timestep = np.divmod(rows, self._timesteps.size)
            batch = (
                jax.tree.map(lambda column, image=image: column[image], images),
                self._timesteps.reshape(-1)[timestep],
            )
            parts.append(jax.device_get(self._program(params, text, *put(batch, batch_sharding(self._mesh)))))
            bar.advance(min(self._batch_size, count - start))
        return np.concatenate(parts)[:count].reshape(-1, *self._timesteps.shape)


class HeldOutLoss:
    """Measures a run's held-out images, and the base model's class images beside them.

    Args:
        inputs: of the run, with held-out images.
        vae: its parameters, with which the images are encoded.
        encoded: `held_out_captions`, where the text encoder is not among the parameters.
    """

    def __init__(
        self, config: Config, inputs: RunInputs, mesh: Mesh, vae: Params, encoded: EncodedPrompts | None = None
    ):
        base = inputs.base
        self._base, self._encoded = base, encoded
        self._square = (config.resolution, config.resolution)
        self._captions = held_out_captions(inputs, config.subjects)
        self._class_prompts = class_prompts(config.subjects)
        self._program = cache(lambda shape: LossProgram(base, mesh, config.loss, shape))
        self._encode = jax.jit(
            lambda params, ids: encode_prompts(base, mesh, params, ids), out_shardings=replicated(mesh)
        )
        encoder = ImageEncoder(base, vae, mesh)
        self._subject = {
            shape: encode_held_out(base, encoder, members, shape, self._captions)
            for shape, members in group_held_out(config, inputs).items()
        }

    def __call__(self, params: dict[str, Params], class_latents: np.ndarray | None) -> dict[str, float]:
        """Returns the mean losses by their names in the logs.

        Args:
            params: of all components but text encoders that were dropped.
            class_latents: of the base model's class images, see `base_class_images`; None: there are none.
        """
        groups = {SUBJECT_LOSS: self._subject}
        if class_latents is not None:
            images = base_class_images(self._base, class_latents, self._class_prompts, self._square, self._captions)
            groups |= {CLASS_LOSS: {self._square: images}} if images else {}
        total = sum(self._program(shape).rows(images) for group in groups.values() for shape, images in group.items())
        denoiser, text = params[self._base.denoiser_name], self._text(params)
        metrics: dict[str, float] = {}
        with progress("held out", total, transient=True) as bar:
            for name, group in groups.items():
                parts = [self._program(shape)(denoiser, text, images, bar) for shape, images in group.items()]
                metrics |= named_means(name, np.concatenate(parts), self._base.schedule.num_train_timesteps)
        return metrics

    def _text(self, params: dict[str, Params]) -> TextEmbeddings:
        """Returns the embeddings of all captions, by the text encoders as they are now."""
        if self._encoded:
            return self._encoded.select(self._captions)
        encoders = {name: params[name] for name in self._base.text_encoder_names}
        return self._encode(encoders, self._base.text.tokenize(self._captions))


def named_means(name: str, losses: Float[np.ndarray, "images bins timesteps"], total: int) -> dict[str, float]:
    """Returns the mean over all images and timesteps, and that of each bin of timesteps, rounded to float32.

    Args:
        losses: float32.
        total: timesteps of the schedule.
    """
    edges = bin_edges(total)
    means = {name: losses.mean(dtype=np.float64)}
    for index, mean in enumerate(losses.mean(axis=(0, 2), dtype=np.float64)):
        means[f"{name}_t{edges[index]}-{edges[index + 1] - 1}"] = mean
    return {key: float(np.float32(mean)) for key, mean in means.items()}
