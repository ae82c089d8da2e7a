"""Where steps take their rows from: one bank of latents for each shape of picture, and the order of the shapes."""

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
from jaxbooth.data.images import Picture
from jaxbooth.data.latents import Bank, concatenate, distinct_captions, encode_pictures, on_devices
from jaxbooth.params import Params
from jaxbooth.prng import key_data
from jaxbooth.runs.inputs import Inputs, framing_of
from jaxbooth.training.layout import Streams, make_streams


@dataclass(frozen=True)
class Feed:
    """All banks of a run. A step's bank is a pure function of (seed, step).

    Attributes:
        banks: one for each shape.
        streams: layout of each bank.
    """

    banks: tuple[Bank, ...]
    streams: tuple[Streams, ...]
    order: BucketOrder

    def shift(self, step: int) -> int:
        """Returns how many of the steps before `step` took their rows from another bank than it does."""
        return step - self.order.visits(step)


def make_feed(
    config: Config, inputs: Inputs, params: dict[str, Params], classes: list[list[Picture]], mesh: Mesh
) -> Feed:
    """Encodes all pictures, in every shape that they are needed in, and all captions.

    Args:
        params: of the base model.
        classes: pictures of each class. They are cut to the shape of the instance pictures that they train beside.
    """
    class_pictures = [picture for pictures in classes for picture in pictures]
    captions = distinct_captions([*inputs.pictures, *class_pictures], config.text.caption_dropout > 0)
    text, frozen_text = encode_captions(config, inputs.base, mesh, params, captions)
    encode = ImageEncoder(inputs.base, params["vae"], mesh)
    banks, streams, counts = [], [], []
    with progress("encode", len(inputs.pictures) + len(inputs.shapes) * len(class_pictures)) as bar:
        for shape, subjects in inputs.shapes.items():
            framing = framing_of(config, shape)
            groups = [(pictures, config.data.masks) for pictures in subjects] + [(found, False) for found in classes]
            images = [
                encode_pictures(inputs.base, encode, pictures, framing, masked, bar)
                for pictures, masked in groups
                if pictures
            ]
            shown = [captions.index(picture.caption) for pictures, _ in groups for picture in pictures]
            bank = Bank(concatenate(images), np.array(shown, np.int32), text, key_data(config.seed), frozen_text)
            banks.append(on_devices(bank, mesh))
            counts.append(sum(map(len, subjects)))
            weights = [subject.weight for subject in config.subjects]
            sizes = [len(pictures) for pictures in subjects]
            streams.append(make_streams(sizes, list(map(len, classes)), inputs.class_of, weights))
    return Feed(tuple(banks), tuple(streams), BucketOrder(tuple(counts), config.seed))


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
