"""Where steps take their rows from: one latent cache for each shape of image, and the order of the shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.encoded_prompts import EncodedPrompts, encode_batches
from jaxbooth.base.model import BaseModel, encode_prompts
from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import info
from jaxbooth.console.progress import ProgressBar, progress
from jaxbooth.data.buckets import BucketOrder
from jaxbooth.data.crops import CropSpec
from jaxbooth.data.images import ImageFile, load_image
from jaxbooth.data.latents import (
    CachedImages,
    LatentCache,
    caption_table,
    concatenate_images,
    distinct_captions,
    encode_images,
)
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.distributed.arrays import put
from jaxbooth.params import AnyArray, Params
from jaxbooth.prng import key_data
from jaxbooth.runs.inputs import RunInputs, crop_spec
from jaxbooth.sharding import replicated
from jaxbooth.storage.disk import format_bytes
from jaxbooth.training.batch import BatchSource
from jaxbooth.training.layout import SubjectSlices, subject_slices

CAPTION_BATCH = 64  # captions that CLIP encodes at once

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingData:
    """All latent caches of a run. A step's cache is a pure function of (seed, step).

    Attributes:
        caches: one for each shape.
        slices: layout of each cache.
        key: (2,) uint32 of the run's seed, see `prng.key_data`; all randomness of the steps is folded from it.
    """

    caches: tuple[LatentCache, ...]
    slices: tuple[SubjectSlices, ...]
    order: BucketOrder
    key: AnyArray

    def source(self, step: int) -> BatchSource:
        """Returns where a step takes its rows from."""
        skipped = step - self.order.visits(step)
        return BatchSource(self.caches[self.order.bucket(step)], np.asarray(skipped, np.int32))


def encode_training_data(
    config: Config,
    inputs: RunInputs,
    images: TrainingImages,
    params: dict[str, Params],
    classes: list[list[ImageFile]],
    mesh: Mesh,
    encoded: EncodedPrompts | None = None,
) -> TrainingData:
    """Encodes all images, in every shape that they are needed in, and all captions.

    Args:
        params: of the base model.
        encoded: the captions, where they were encoded ahead.
        classes: images of each class. They are cropped to the shape of the instance images that they train beside.
    """
    class_files = [file for files in classes for file in files]
    prompts = (prompt for file in (*inputs.images, *class_files) for prompt in file.prompts)
    captions = distinct_captions(prompts, config.needs_empty_caption)
    if encoded:
        text, frozen_text = encoded.select(captions), None
    else:
        text, frozen_text = encode_captions(config, inputs.base, mesh, params, captions)
    if any(len(file.captions) > 1 for file in inputs.images):
        size = sum(leaf.nbytes for leaf in jax.tree.leaves((text, frozen_text)))
        info(f"captions: {len(captions)} encoded, which take {format_bytes(size)} on each device")
    encoder, factor = ImageEncoder(inputs.base, params["vae"], mesh), inputs.base.vae_config.factor
    weights = [subject.weight for subject in config.subjects]
    crop_specs = [crop_spec(config, shape) for shape in inputs.shapes]
    caches, slices, counts = [], [], []
    with progress("encode", len(inputs.images) + len(inputs.shapes) * len(class_files)) as bar:
        class_images = encode_class_images(encoder, class_files, crop_specs, factor, bar)
        for crops, subjects in zip(crop_specs, inputs.shapes.values(), strict=True):
            subject_images = [
                encode_images(encoder, batch, [images.take(file, crops) for file in batch], config.data.masks, factor)
                for files in subjects
                for batch in batches(files, encoder.batch_size, bar)
            ]
            files = [file for files in (*subjects, class_files) for file in files]
            cached = concatenate_images([*subject_images, *class_images[crops]])
            caption, caption_counts, class_caption = caption_tables(files, captions)
            cache = LatentCache(cached, caption, caption_counts, text, frozen_text, class_caption)
            caches.append(put(cache, replicated(mesh)))
            counts.append(sum(map(len, subjects)))
            instances = [len(files) for files in subjects]
            slices.append(subject_slices(instances, [len(files) for files in classes], inputs.class_of, weights))
    key = put(key_data(config.seed), replicated(mesh))
    return TrainingData(tuple(caches), tuple(slices), BucketOrder(tuple(counts), config.seed), key)


def caption_tables(
    files: Sequence[ImageFile], captions: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns `caption`, `caption_counts` and `class_caption` of a latent cache, given all captions."""
    counts = np.array([len(file.captions) for file in files], np.int32)
    width = int(counts.max())
    caption = caption_table([file.captions for file in files], captions, width)
    if not any(file.class_captions for file in files):
        return caption, counts, None
    return caption, counts, caption_table([file.class_captions for file in files], captions, width)


def encode_class_images(
    encoder: ImageEncoder, files: Sequence[ImageFile], crop_specs: Sequence[CropSpec], factor: int, bar: ProgressBar
) -> dict[CropSpec, list[CachedImages]]:
    """Decodes every class image once, and encodes it in every shape."""
    encoded: dict[CropSpec, list[CachedImages]] = {crops: [] for crops in crop_specs}
    for batch in batches(files, encoder.batch_size):
        loaded = [load_image(file.path) for file in batch]
        for crops in crop_specs:
            augmentations = [crops.augment(image, file.index) for image, file in zip(loaded, batch, strict=True)]
            encoded[crops].append(encode_images(encoder, batch, augmentations, masked=False, factor=factor))
            bar.advance(len(batch))
    return encoded


def batches(items: Sequence[T], size: int, bar: ProgressBar | None = None) -> Iterator[Sequence[T]]:
    """Yields consecutive parts of at most `size` items, and advances the bar when each is done."""
    for start in range(0, len(items), size):
        batch = items[start : start + size]
        yield batch
        if bar:
            bar.advance(len(batch))


def encode_captions(
    config: Config, base: BaseModel, mesh: Mesh, params: dict[str, Params], captions: Sequence[str]
) -> tuple[TextEmbeddings | TokenIds, TextEmbeddings | None]:
    """Returns the captions as the step takes them, and as the frozen model sees them where the prior needs that."""
    ids = base.text.tokenize(captions)
    encoders = {name: params[name] for name in base.text_encoder_names}
    program = jax.jit(lambda values, ids: encode_prompts(base, mesh, values, ids))

    def encode() -> TextEmbeddings:
        return encode_batches(program, encoders, ids, min(len(captions), CAPTION_BATCH))

    if not config.trains_text:
        return encode(), None
    return ids, encode() if config.needs_reference else None
