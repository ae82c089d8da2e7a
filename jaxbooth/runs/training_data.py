"""Where steps take their rows from: one cache of latents for each shape of image, and the order of the shapes."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel, encode_prompts
from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.run_config import Config
from jaxbooth.console.progress import progress
from jaxbooth.data.buckets import BucketOrder
from jaxbooth.data.images import ImageFile
from jaxbooth.data.latents import LatentCache, concatenate_images, distinct_captions, encode_images, on_devices
from jaxbooth.params import Params
from jaxbooth.prng import key_data
from jaxbooth.runs.inputs import RunInputs, crop_spec
from jaxbooth.training.layout import SubjectSlices, subject_slices


@dataclass(frozen=True)
class TrainingData:
    """All caches of a run. A step's cache is a pure function of (seed, step).

    Attributes:
        caches: one for each shape.
        slices: layout of each cache.
    """

    caches: tuple[LatentCache, ...]
    slices: tuple[SubjectSlices, ...]
    order: BucketOrder

    def shift(self, step: int) -> int:
        """Returns how many of the steps before `step` took their rows from another cache than it does."""
        return step - self.order.visits(step)


def encode_training_data(
    config: Config, inputs: RunInputs, params: dict[str, Params], classes: list[list[ImageFile]], mesh: Mesh
) -> TrainingData:
    """Encodes all images, in every shape that they are needed in, and all captions.

    Args:
        params: of the base model.
        classes: images of each class. They are cut to the shape of the instance images that they train beside.
    """
    class_images = [image for images in classes for image in images]
    captions = distinct_captions([*inputs.images, *class_images], config.text.caption_dropout > 0)
    text, frozen_text = encode_captions(config, inputs.base, mesh, params, captions)
    encode = ImageEncoder(inputs.base, params["vae"], mesh)
    caches, slices, counts = [], [], []
    with progress("encode", len(inputs.images) + len(inputs.shapes) * len(class_images)) as bar:
        for shape, subjects in inputs.shapes.items():
            framing = crop_spec(config, shape)
            groups = [(files, config.data.masks) for files in subjects] + [(files, False) for files in classes]
            images = concatenate_images(
                encode_images(inputs.base, encode, files, framing, masked, bar) for files, masked in groups if files
            )
            shown = [captions.index(file.caption) for files, _ in groups for file in files]
            cache = LatentCache(images, np.array(shown, np.int32), text, key_data(config.seed), frozen_text)
            caches.append(on_devices(cache, mesh))
            counts.append(sum(map(len, subjects)))
            weights = [subject.weight for subject in config.subjects]
            sizes = [len(images) for images in subjects]
            slices.append(subject_slices(sizes, list(map(len, classes)), inputs.class_of, weights))
    return TrainingData(tuple(caches), tuple(slices), BucketOrder(tuple(counts), config.seed))


def encode_captions(
    config: Config, base: BaseModel, mesh: Mesh, params: dict[str, Params], captions: Sequence[str]
) -> tuple[TextEmbeddings | TokenIds, TextEmbeddings | None]:
    """Returns the captions as the step takes them, and as the frozen model sees them where the prior needs that."""
    ids = base.text.tokenize(captions)
    encoders = {name: params[name] for name in base.text_encoder_names}
    encode = jax.jit(lambda values, ids: encode_prompts(base, mesh, values, ids))
    if not config.trains_text:
        return encode(encoders, ids), None
    return ids, encode(encoders, ids) if config.loss.prior_target == "frozen" and config.prior_rows else None
