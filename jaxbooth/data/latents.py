"""The latent cache: every image encoded once, every caption once, all of it on the devices.

A batch is a pure function of (key, step): which image, which augmentation, which noise. No loader runs beside the step,
and a resumed run sees exactly the rows that an uninterrupted one would have seen. With aspect-ratio buckets there is
one cache for each shape.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.data.crops import Augmentations
from jaxbooth.data.images import ImageFile
from jaxbooth.errors import RunFailure
from jaxbooth.models.vae import AnyVAEConfig, Moments, scale_latents
from jaxbooth.params import AnyArray, Array


class CachedImages(NamedTuple):
    """Augmentations of images as the step needs them; on the host until they are in a cache.

    Attributes:
        mean, logvar: VAE moments, unscaled.
        time_ids: SDXL's size, crop and target numbers in pixels.
        masks: how much each pixel of the latents counts, in [0, 1], or None where all count alike.
    """

    mean: Float[AnyArray, "images augmentations h w c"]
    logvar: Float[AnyArray, "images augmentations h w c"]
    time_ids: Float[AnyArray, "images augmentations 6"]
    masks: Float[AnyArray, "images augmentations h w 1"] | None


class LatentCache(NamedTuple):
    """Images and captions of one shape of image.

    Attributes:
        images: the subjects' images, then the classes'.
        caption: rows of `text`: the captions of each image, of which a row of a step takes one.
        caption_counts: how many captions each image has; further ones are padding.
        class_caption: rows of `text` with the same captions of instance images without the identifier; None where no
            row needs them.
        text: `TextEmbeddings` of the distinct captions where the text encoders are frozen, else their token ids. The
            last one is the empty prompt where a row may have it.
        frozen_text: the frozen model's `TextEmbeddings` of the same captions, where the prior's target needs it.
    """

    images: CachedImages
    caption: Int[AnyArray, "images variants"]
    caption_counts: Int[AnyArray, " images"]
    text: TextEmbeddings | TokenIds
    frozen_text: TextEmbeddings | None = None
    class_caption: Int[AnyArray, "images variants"] | None = None

    @property
    def augmentations(self) -> int:
        """How many of each image there are."""
        return self.images.mean.shape[1]

    @property
    def captions(self) -> "CaptionTables":
        """Which captions the images have."""
        empty = np.asarray(len(jax.tree.leaves(self.text)[0]) - 1, np.int32)
        return CaptionTables(self.caption, self.caption_counts, self.class_caption, empty)


class CaptionTables(NamedTuple):
    """The captions of the images in a cache, without their text; see `LatentCache`.

    Attributes:
        counts: `caption_counts`.
        empty: row of the text with the empty prompt, where a row may have it; scalar.
    """

    caption: Int[AnyArray, "images variants"]
    counts: Int[AnyArray, " images"]
    class_caption: Int[AnyArray, "images variants"] | None
    empty: Int[AnyArray, ""]


class RowImages(NamedTuple):
    """What `CachedImages` has, of the augmentation that each row takes."""

    mean: Float[AnyArray, "rows h w c"]
    logvar: Float[AnyArray, "rows h w c"]
    time_ids: Float[AnyArray, "rows 6"]
    masks: Float[AnyArray, "rows h w 1"] | None


class BatchIndices(NamedTuple):
    """Which images a batch takes.

    Attributes:
        image, augmentation: indices into the cache.
        weight: of the row's subject.
    """

    image: Int[Array, " rows"]
    augmentation: Int[Array, " rows"]
    weight: Float[Array, " rows"]


def encode_images(
    encode: ImageEncoder, files: Sequence[ImageFile], augmentations: Sequence[Augmentations], masked: bool, factor: int
) -> CachedImages:
    """Encodes the augmentations of at most `encode.batch_size` images of one shape.

    Args:
        masked: keep masks; without, all of an image counts.
        factor: pixels of an image in one of its latents, along each side.

    Raises:
        RunFailure: a latent is not finite; the message names the image.
    """
    moments = encode(np.stack([each.pixels for each in augmentations]))
    for file, mean, logvar in zip(files, moments.mean, moments.logvar, strict=True):
        if not (np.isfinite(mean).all() and np.isfinite(logvar).all()):
            raise RunFailure(f"{file.path}: the VAE encodes this image to non-finite latents; remove it.")
    time_ids = np.stack([each.time_ids for each in augmentations])
    masks = np.stack([latent_masks(each.masks, factor) for each in augmentations]) if masked else None
    return CachedImages(moments.mean, moments.logvar, time_ids, masks)


def latent_masks(masks: Float[np.ndarray, "a H W"], factor: int) -> Float[np.ndarray, "a h w 1"]:
    """Averages masks over the pixels of each latent."""
    count, height, width = masks.shape
    blocks = masks.reshape(count, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(2, 4), dtype=np.float32)[..., None]


def concatenate_images(groups: Iterable[CachedImages]) -> CachedImages:
    """Joins groups of images along their leading axis; where only some have masks, the others count everywhere."""
    groups = list(groups)
    if any(group.masks is not None for group in groups):
        groups = [
            group if group.masks is not None else group._replace(masks=np.ones_like(group.mean[..., :1]))
            for group in groups
        ]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *groups)


def gather_images(images: CachedImages, rows: BatchIndices) -> RowImages:
    """Returns the augmentation that each row takes."""
    return RowImages(*jax.tree.map(lambda column: jnp.asarray(column)[rows.image, rows.augmentation], images))


def posterior_latents(
    images: RowImages, noise: Float[Array, "rows h w c"], vae_config: AnyVAEConfig
) -> Float[Array, "rows h w c"]:
    """Samples the rows' latents from their posteriors and scales them as the VAE's configuration says."""
    moments = Moments(jnp.asarray(images.mean), jnp.asarray(images.logvar))
    return scale_latents(vae_config, moments.sample(noise))


def gather_text(
    text: TextEmbeddings | TokenIds,
    caption: Int[Array, " rows"],
    encode: Callable[[TokenIds], TextEmbeddings] | None,
    shards: int = 1,
) -> TextEmbeddings:
    """Returns the text of captions.

    Args:
        encode: maps token ids to text where the text encoders are trained. Each device encodes every distinct caption,
            or the captions of its own rows where those are fewer.
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


def distinct_captions(captions: Iterable[str], with_empty: bool) -> list[str]:
    """Returns every caption once, in order; the empty one comes last, if asked for."""
    return [*dict.fromkeys(captions), *([""] if with_empty else [])]


def caption_table(
    groups: Sequence[Sequence[str]], captions: Sequence[str], width: int
) -> Int[np.ndarray, "images width"]:
    """Returns where each image's captions are among all captions; what is left of `width` columns is padding."""
    rows = {caption: row for row, caption in enumerate(captions)}
    table = np.zeros((len(groups), width), np.int32)
    for image, group in enumerate(groups):
        table[image, : len(group)] = [rows[caption] for caption in group]
    return table
