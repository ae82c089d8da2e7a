"""The latent bank: every picture encoded once, every caption once, all of it on the devices.

A batch is a pure function of (seed, step): which image, which variant, which noise. No loader runs beside the step,
and a resumed run sees exactly the rows that an uninterrupted one would have seen. With aspect-ratio buckets there is
one bank for each shape.
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
from jaxbooth.data.crops import Framing, Variants, framed
from jaxbooth.data.images import Picture
from jaxbooth.errors import RunFailure
from jaxbooth.models.vae import Moments
from jaxbooth.params import AnyArray
from jaxbooth.sharding import replicated
from jaxbooth.transfer import put


class Encoded(NamedTuple):
    """Variants of pictures as the step needs them; on the host until they are in a bank.

    Attributes:
        mean, logvar: VAE moments (images, variants, h, w, c) float32, unscaled.
        time_ids: (images, variants, 6) float32, SDXL's size, crop and target numbers in pixels.
        masks: (images, variants, h, w, 1) float32 in [0, 1], or None where everything counts.
    """

    mean: AnyArray
    logvar: AnyArray
    time_ids: AnyArray
    masks: AnyArray | None


class Bank(NamedTuple):
    """Images and captions of one shape of picture.

    Attributes:
        images: the subjects' images, then the classes'.
        caption: (images,) int32 row of `text`.
        text: `TextEmbeddings` of the distinct captions where the text encoders are frozen, else their token ids. With
            dropout, the last one is the empty prompt.
        seed: (2,) uint32, see `key_data`; rows, noise and timesteps are drawn from it. An array, so that a run with
            another seed takes the same compiled program.
        frozen_text: the frozen model's `TextEmbeddings` of the same captions, where the prior's target needs it.
    """

    images: Encoded
    caption: AnyArray
    text: TextEmbeddings | TokenIds
    seed: AnyArray
    frozen_text: TextEmbeddings | None = None


class Rows(NamedTuple):
    """Which images a batch takes; each field is (rows,).

    Attributes:
        image, variant: int32, into the bank.
        weight: float32, of the row's subject.
    """

    image: Array
    variant: Array
    weight: Array


def index_in_epochs(key: Array, positions: Array, count: int) -> Array:
    """Maps (r,) positions of an endless stream to image numbers: a fresh permutation of all `count` in every epoch."""

    def pick(position: Array) -> Array:
        permutation = jax.random.permutation(jax.random.fold_in(key, position // count), count)
        return permutation[position % count]

    return jax.vmap(pick)(positions)


def encode_pictures(
    base: BaseModel,
    encode: ImageEncoder,
    pictures: list[Picture],
    framing: Framing,
    masked: bool,
    bar: ProgressBar | None = None,
) -> Encoded:
    """Encodes all variants of all pictures of one shape.

    Args:
        masked: read masks; without, all of a picture counts.

    Raises:
        RunFailure: a latent is not finite; the message names the picture.
    """
    groups = []
    for start in range(0, len(pictures), encode.batch_size):
        some = pictures[start : start + encode.batch_size]
        variants = list(framed(some, framing, masked))
        moments = encode(np.stack([each.pixels for each in variants]))
        for picture, *parts in zip(some, *moments, strict=True):
            if not all(np.isfinite(part).all() for part in parts):
                raise RunFailure(f"{picture.path}: the VAE encodes this picture to non-finite latents; remove it.")
        masks = np.stack([shrink_masks(each, base.vae_config.factor) for each in variants]) if masked else None
        groups.append(Encoded(moments.mean, moments.logvar, np.stack([each.time_ids for each in variants]), masks))
        if bar:
            bar.advance(len(some))
    return concatenate(groups)


def shrink_masks(variants: Variants, factor: int) -> np.ndarray:
    """Averages (v, H, W) masks over the pixels of each latent; (v, h, w, 1)."""
    count, height, width = variants.masks.shape
    blocks = variants.masks.reshape(count, height // factor, factor, width // factor, factor)
    return blocks.mean(axis=(2, 4), dtype=np.float32)[..., None]


def concatenate(groups: Iterable[Encoded]) -> Encoded:
    """Joins groups of images along their leading axis; where only some have masks, the others count everywhere."""
    filled = list(groups)
    if any(group.masks is not None for group in filled):
        filled = [
            group if group.masks is not None else group._replace(masks=np.ones_like(group.mean[..., :1]))
            for group in filled
        ]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *filled)


def gather_latents(images: Encoded, rows: Rows, noise: Array, scaling_factor: float) -> Array:
    """Draws the rows' latents from their posteriors and scales them; (rows, h, w, c) float32."""
    moments = Moments(images.mean[rows.image, rows.variant], images.logvar[rows.image, rows.variant])
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


def distinct_captions(pictures: Iterable[Picture], with_empty: bool) -> list[str]:
    """Returns every caption once, in order; the empty one comes last, if asked for."""
    return [*dict.fromkeys(picture.caption for picture in pictures), *([""] if with_empty else [])]


def on_devices(bank: Bank, mesh: Mesh) -> Bank:
    """Puts a bank on every device."""
    return put(bank, replicated(mesh))
