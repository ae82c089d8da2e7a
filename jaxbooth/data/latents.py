"""The latent cache: every image encoded once, every caption once, all of it on the devices.

A batch is a pure function of (seed, step): which image, which augmentation, which noise. No loader runs beside the
step, and a resumed run sees exactly the rows that an uninterrupted one would have seen. With aspect-ratio buckets there
is one cache for each shape.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.console.progress import ProgressBar
from jaxbooth.data.crops import Augmentations, CropSpec, load_augmentations
from jaxbooth.data.images import ImageFile
from jaxbooth.distributed.arrays import put
from jaxbooth.errors import RunFailure
from jaxbooth.models.vae import Moments
from jaxbooth.params import AnyArray
from jaxbooth.sharding import replicated


class CachedImages(NamedTuple):
    """Variants of images as the step needs them; on the host until they are in a cache.

    Attributes:
        mean, logvar: VAE moments (images, augmentations, h, w, c) float32, unscaled.
        time_ids: (images, augmentations, 6) float32, SDXL's size, crop and target numbers in pixels.
        masks: (images, augmentations, h, w, 1) float32 in [0, 1], or None where everything counts.
    """

    mean: AnyArray
    logvar: AnyArray
    time_ids: AnyArray
    masks: AnyArray | None


class LatentCache(NamedTuple):
    """Images and captions of one shape of image.

    Attributes:
        images: the subjects' images, then the classes'.
        caption: (images,) int32 row of `text`.
        text: `TextEmbeddings` of the distinct captions where the text encoders are frozen, else their token ids. With
            dropout, the last one is the empty prompt.
        seed: (2,) uint32, see `key_data`; rows, noise and timesteps are drawn from it. An array, so that a run with
            another seed takes the same compiled program.
        frozen_text: the frozen model's `TextEmbeddings` of the same captions, where the prior's target needs it.
    """

    images: CachedImages
    caption: AnyArray
    text: TextEmbeddings | TokenIds
    seed: AnyArray
    frozen_text: TextEmbeddings | None = None


class BatchIndices(NamedTuple):
    """Which images a batch takes; each field is (rows,).

    Attributes:
        image, augmentation: int32, into the cache.
        weight: float32, of the row's subject.
    """

    image: Array
    augmentation: Array
    weight: Array


def index_in_epochs(key: Array, positions: Array, count: int) -> Array:
    """Maps (r,) positions of an endless stream to image numbers: a fresh permutation of all `count` in every epoch."""

    def pick(position: Array) -> Array:
        permutation = jax.random.permutation(jax.random.fold_in(key, position // count), count)
        return permutation[position % count]

    return jax.vmap(pick)(positions)


def encode_images(
    base: BaseModel,
    encode: ImageEncoder,
    images: list[ImageFile],
    framing: CropSpec,
    masked: bool,
    bar: ProgressBar | None = None,
) -> CachedImages:
    """Encodes all augmentations of all images of one shape.

    Args:
        masked: read masks; without, all of an image counts.

    Raises:
        RunFailure: a latent is not finite; the message names the image.
    """
    groups = []
    for start in range(0, len(images), encode.batch_size):
        some = images[start : start + encode.batch_size]
        augmentations = list(load_augmentations(some, framing, masked))
        moments = encode(np.stack([each.pixels for each in augmentations]))
        for image, *parts in zip(some, *moments, strict=True):
            if not all(np.isfinite(part).all() for part in parts):
                raise RunFailure(f"{image.path}: the VAE encodes this image to non-finite latents; remove it.")
        masks = np.stack([latent_masks(each, base.vae_config.factor) for each in augmentations]) if masked else None
        groups.append(
            CachedImages(moments.mean, moments.logvar, np.stack([each.time_ids for each in augmentations]), masks)
        )
        if bar:
            bar.advance(len(some))
    return concatenate_images(groups)


def latent_masks(augmentations: Augmentations, factor: int) -> np.ndarray:
    """Averages (v, H, W) masks over the pixels of each latent; (v, h, w, 1)."""
    count, height, width = augmentations.masks.shape
    blocks = augmentations.masks.reshape(count, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(2, 4), dtype=np.float32)[..., None]


def concatenate_images(groups: Iterable[CachedImages]) -> CachedImages:
    """Joins groups of images along their leading axis; where only some have masks, the others count everywhere."""
    filled = list(groups)
    if any(group.masks is not None for group in filled):
        filled = [
            group if group.masks is not None else group._replace(masks=np.ones_like(group.mean[..., :1]))
            for group in filled
        ]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *filled)


def gather_latents(images: CachedImages, rows: BatchIndices, noise: Array, scaling_factor: float) -> Array:
    """Draws the rows' latents from their posteriors and scales them; (rows, h, w, c) float32."""
    moments = Moments(images.mean[rows.image, rows.augmentation], images.logvar[rows.image, rows.augmentation])
    return moments.sample(noise) * scaling_factor


def gather_text(
    text: TextEmbeddings | TokenIds,
    caption: Array,
    encode: Callable[[TokenIds], TextEmbeddings] | None,
    shards: int = 1,
) -> TextEmbeddings:
    """Returns the text of (rows,) captions.

    Args:
        encode: maps token ids to text when the text side is trained. Each device encodes every distinct caption, or
            the captions of its own rows where those are fewer.
        shards: parts that the rows are split into.
    """

    def take(tree: Any) -> Any:
        return jax.tree.map(lambda column: jnp.asarray(column)[caption], tree)

    if encode is None:
        return take(text)
    assert isinstance(text, dict)
    if len(next(iter(text.values()))) <= len(caption) // shards:
        return take(encode(text))
    return encode(take(text))


def distinct_captions(images: Iterable[ImageFile], with_empty: bool) -> list[str]:
    """Returns every caption once, in order; the empty one comes last, if asked for."""
    return [*dict.fromkeys(image.caption for image in images), *([""] if with_empty else [])]


def on_devices(cache: LatentCache, mesh: Mesh) -> LatentCache:
    """Puts a cache on every device."""
    return put(cache, replicated(mesh))
