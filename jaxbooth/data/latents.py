"""The latent bank: every picture encoded once, every caption once, all of it on the devices.

A batch is a pure function of (seed, step): which image, which variant, which noise. No loader runs beside the step,
and a resumed run sees exactly the rows that an uninterrupted one would have seen.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxbooth.console import track
from jaxbooth.data.images import Framing, Picture, framed
from jaxbooth.errors import RunFailure
from jaxbooth.models.vae import Moments
from jaxbooth.params import AnyArray, Params, full_precision
from jaxbooth.pipeline import Base
from jaxbooth.sharding import replicated


class Bank(NamedTuple):
    """Images 0 .. instances-1 are the subject's, the others the class's.

    Attributes:
        mean, logvar: VAE moments (images, variants, h, w, c) float32, unscaled.
        caption: (images,) int32 row of `text`.
        text: features (captions, s, d) when the text encoder is frozen, else token ids (captions, s) int32.
    """

    mean: AnyArray
    logvar: AnyArray
    caption: AnyArray
    text: AnyArray


class Rows(NamedTuple):
    """Which images a batch takes; each field is (rows,) int32."""

    image: Array
    variant: Array


def index_in_epochs(key: Array, positions: Array, count: int) -> Array:
    """Maps (r,) positions of an endless stream to image numbers: a fresh permutation of all `count` in every epoch."""

    def pick(position: Array) -> Array:
        permutation = jax.random.permutation(jax.random.fold_in(key, position // count), count)
        return permutation[position % count]

    return jax.vmap(pick)(positions)


def encode_pictures(base: Base, params: Params, pictures: list[Picture], framing: Framing, mesh: Mesh) -> Moments:
    """Encodes all variants of all pictures with the VAE, in float32, under a progress bar.

    Returns:
        Moments of shape (images, variants, h, w, c), on the host.

    Raises:
        RunFailure: a latent is not finite; the message names the picture.
    """

    @jax.jit
    def encode(params: Params, variants: Array) -> Moments:
        model = base.vae.bind(params)
        with full_precision():  # one variant at a time bounds the encoder's memory
            return jax.lax.map(
                lambda one: jax.tree.map(lambda x: x[0], model.encode(one[None] / 127.5 - 1.0)), variants
            )

    found = []
    for picture, variants in track("encode", zip(pictures, framed(pictures, framing), strict=True), len(pictures)):
        moments = jax.device_get(encode(params, jax.device_put(variants.astype(np.float32), replicated(mesh))))
        if not all(np.isfinite(part).all() for part in moments):
            raise RunFailure(f"{picture.path}: the VAE encodes this picture to non-finite latents; remove it.")
        found.append(moments)
    return Moments(*(np.stack(parts) for parts in zip(*found, strict=True)))


def build_bank(
    groups: list[tuple[list[Picture], Moments]], encode_captions: Callable[[list[str]], Array], mesh: Mesh
) -> Bank:
    """Puts encoded pictures and their distinct captions on the devices.

    Args:
        groups: pictures and moments of the subject, then of the class.
        encode_captions: maps distinct captions to features or token ids, in the same order.
    """
    captions = list(chain.from_iterable((picture.caption for picture in pictures) for pictures, _ in groups))
    distinct = list(dict.fromkeys(captions))
    bank = Bank(
        mean=np.concatenate([moments.mean for _, moments in groups]),
        logvar=np.concatenate([moments.logvar for _, moments in groups]),
        caption=np.array([distinct.index(caption) for caption in captions], np.int32),
        text=encode_captions(distinct),
    )
    return jax.device_put(bank, replicated(mesh))


def gather_latents(bank: Bank, rows: Rows, noise: Array, scaling_factor: float) -> Array:
    """Draws the rows' latents from their posteriors and scales them; (rows, h, w, c) float32."""
    moments = Moments(bank.mean[rows.image, rows.variant], bank.logvar[rows.image, rows.variant])
    return moments.sample(noise) * scaling_factor


def gather_text(bank: Bank, rows: Rows, encode: Callable[[Array], Array] | None) -> Array:
    """Returns the rows' text features (rows, s, d).

    Args:
        encode: maps token ids to features when the text encoder is trained. Each distinct caption is encoded once,
            unless there are more captions than rows.
    """
    caption = jnp.asarray(bank.caption)[rows.image]
    text = jnp.asarray(bank.text)
    if encode is None:
        return text[caption]
    if len(text) <= len(caption):
        return encode(text)[caption]
    return encode(text[caption])


def all_variants(pictures: list[Picture], framing: Framing) -> Iterator[tuple[np.ndarray, str]]:
    """Yields every variant that the model sees, with its caption: what a contact sheet shows."""
    for picture, variants in zip(pictures, framed(pictures, framing), strict=True):
        yield from ((pixels, picture.caption) for pixels in variants)
