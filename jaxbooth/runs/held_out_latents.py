"""The latents that the held-out loss is measured on: of the subjects' held-out images, and of the class."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbooth.base.model import BaseModel
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject
from jaxbooth.data.buckets import group_by_bucket
from jaxbooth.data.crops import CropSpec, load_augmentations
from jaxbooth.data.decoding import read_header
from jaxbooth.data.images import ImageFile
from jaxbooth.data.latents import concatenate_images, encode_images
from jaxbooth.models.vae import scale_latents
from jaxbooth.runs.inputs import RunInputs, bucket_multiple
from jaxbooth.training.held_out_loss import HeldOutImages

SUBJECT, CLASS = 0, 1  # kinds of images, the first number of an image's identity
Shape = tuple[int, int]  # height and width of images in pixels


class Member(NamedTuple):
    """A held-out image, and the number of its subject."""

    subject: int
    file: ImageFile


def held_out_captions(inputs: RunInputs, subjects: Sequence[Subject]) -> list[str]:
    """Returns the distinct captions of the held-out images, and the prompts of the classes."""
    captions = [file.caption for file in inputs.held_out_images]
    return list(dict.fromkeys([*captions, *class_prompts(subjects)]))


def class_prompts(subjects: Sequence[Subject]) -> list[str]:
    """Returns the distinct prompts of the classes, in the order of the validation's class images."""
    return list(dict.fromkeys(subject.class_prompt for subject in subjects if subject.class_prompt))


def group_held_out(config: Config, inputs: RunInputs) -> dict[Shape, list[Member]]:
    """Groups the held-out images by the shape that they would be trained in: one square, or aspect-ratio buckets."""
    side = config.resolution
    members = [Member(subject, file) for subject, files in enumerate(inputs.held_out) for file in files]
    if not config.data.buckets:
        return {(side, side): members}
    sizes = [read_header(member.file.path).size for member in members]
    groups = group_by_bucket(sizes, side, bucket_multiple(inputs.base.resolution_multiple, side))
    return {shape: [members[index] for index in indices] for shape, indices in groups.items()}


def encode_held_out(
    base: BaseModel, encoder: ImageEncoder, members: Sequence[Member], shape: Shape, captions: Sequence[str]
) -> HeldOutImages:
    """Encodes the center crops of images, unmirrored and without their masks.

    Args:
        captions: all texts, of which each image's caption is one.

    Raises:
        RunFailure: a latent is not finite; the message names the image.
    """
    parts = []
    for start in range(0, len(members), encoder.batch_size):
        files = [member.file for member in members[start : start + encoder.batch_size]]
        crops = list(load_augmentations(files, CropSpec(*shape)))
        parts.append(encode_images(encoder, files, crops, masked=False, factor=base.vae_config.factor))
    cached = concatenate_images(parts)
    return HeldOutImages(
        latents=np.asarray(scale_latents(base.vae_config, jnp.asarray(cached.mean[:, 0]))),
        time_ids=np.asarray(cached.time_ids[:, 0]),
        caption=np.array([captions.index(member.file.caption) for member in members], np.int32),
        identity=np.array([(SUBJECT, member.subject, member.file.index) for member in members], np.int32),
    )


def base_class_images(
    base: BaseModel, latents: np.ndarray, prompts: Sequence[str], shape: Shape, captions: Sequence[str]
) -> HeldOutImages | None:
    """Returns the base model's class images as images to measure, or None where their latents are of another shape.

    Args:
        latents: (n, h, w, c) scaled, the same number of each of `prompts`, one prompt after another.
        shape: of the images.
        captions: all texts, of which each prompt is one.
    """
    count, rest = divmod(len(latents), max(len(prompts), 1))
    if not prompts or rest or latents.shape[1:] != base.latent_shape(*shape):
        return None
    numbers = [(prompt, image) for prompt in range(len(prompts)) for image in range(count)]
    return HeldOutImages(
        latents=latents,
        time_ids=np.tile(np.array([*shape, 0, 0, *shape], np.float32), (len(latents), 1)),
        caption=np.array([captions.index(prompts[prompt]) for prompt, _ in numbers], np.int32),
        identity=np.array([(CLASS, *pair) for pair in numbers], np.int32),
    )
