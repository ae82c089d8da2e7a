"""Images and captions of many subjects are encoded by the same programs; what several subjects have, once."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.encoded_prompts import EncodedPrompts
from jaxbooth.base.model import BaseModel, encode_prompts
from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.run_config import Config
from jaxbooth.data.crops import CropSpec
from jaxbooth.data.images import ImageFile, load_image
from jaxbooth.data.latents import CachedImages, CaptionTables, concatenate_images, distinct_captions, encode_images
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.params import Params
from jaxbooth.runs.inputs import RunInputs, crop_spec
from jaxbooth.runs.training_data import batches, caption_tables
from jaxbooth.training.layout import SubjectSlices, subject_slices

CAPTION_BATCH = 8  # captions that are encoded at once
# Of what is kept for the subjects to come, so that memory does not grow with their number.
MAX_CAPTIONS, MAX_CLASSES = 256, 16

K = TypeVar("K")
T = TypeVar("T")


class SubjectData(NamedTuple):
    """What a subject is trained on; all of it on the host.

    Attributes:
        images: of the subject, then of its class.
        captions: which captions they have.
        text: one row for each caption, as the step takes them: embeddings, or token ids where they are trained.
        frozen_text: their embeddings, where the frozen model needs others than `text`.
    """

    images: CachedImages
    captions: CaptionTables
    slices: SubjectSlices
    text: TextEmbeddings | TokenIds
    frozen_text: TextEmbeddings | None


class Encoders:
    """Encodes one subject after the other.

    Args:
        params: of the VAE and the text encoders.
        encoded: all prompts, where the text encoder is not among the parameters.
    """

    def __init__(self, base: BaseModel, mesh: Mesh, params: dict[str, Params], encoded: EncodedPrompts | None = None):
        self.images = ImageEncoder(base, params["vae"], mesh)
        self._base, self._encoded = base, encoded
        self._text_params = {name: params[name] for name in base.text_encoder_names if name in params}
        self._encode = jax.jit(lambda params, ids: encode_prompts(base, mesh, params, ids))
        self._known_captions: dict[str, TextEmbeddings] = {}
        self._known_classes: dict[tuple[tuple[str, ...], CropSpec], list[CachedImages]] = {}

    def encode(
        self, config: Config, inputs: RunInputs, images: TrainingImages, class_files: Sequence[ImageFile]
    ) -> SubjectData:
        """Encodes the images of one subject, which have one shape, those of its class, and all their captions."""
        [(shape, [files])] = inputs.shapes.items()
        crops, factor = crop_spec(config, shape), self._base.vae_config.factor
        prompts = (prompt for file in (*files, *class_files) for prompt in file.prompts)
        captions = distinct_captions(prompts, config.needs_empty_caption)
        own = [
            encode_images(self.images, batch, [images.take(file, crops) for file in batch], config.data.masks, factor)
            for batch in batches(files, self.images.batch_size)
        ]
        cached = concatenate_images([*own, *self.encode_class(class_files, crops)])
        caption, counts, class_caption = caption_tables([*files, *class_files], captions)
        tables = CaptionTables(caption, counts, class_caption, np.asarray(len(captions) - 1, np.int32))
        classes = [len(class_files)] if class_files else []
        slices = subject_slices([len(files)], classes, [0], [1.0])
        if not config.trains_text:
            return SubjectData(cached, tables, slices, self.encode_captions(captions), None)
        frozen_text = self.encode_captions(captions) if config.needs_reference else None
        return SubjectData(cached, tables, slices, self._base.text.tokenize(captions), frozen_text)

    def encode_class(self, files: Sequence[ImageFile], crops: CropSpec) -> list[CachedImages]:
        """Encodes the images of a class; kept for the next subject where its seed does not change how they are cut."""
        key = (tuple(str(file.path) for file in files), crops._replace(seed=0))
        if key in self._known_classes:
            return self._known_classes[key]
        encoded = []
        for batch in batches(files, self.images.batch_size):
            augmentations = [crops.augment(load_image(file.path), file.index) for file in batch]
            encoded.append(encode_images(self.images, batch, augmentations, False, self._base.vae_config.factor))
        return encoded if crops.crops else remember(self._known_classes, key, encoded, MAX_CLASSES)

    def encode_captions(self, captions: Sequence[str]) -> TextEmbeddings:
        """Returns the embeddings of captions, on the host."""
        if self._encoded:
            return jax.device_get(self._encoded.select(captions))
        known = {caption: self._known_captions[caption] for caption in captions if caption in self._known_captions}
        missing = [caption for caption in captions if caption not in known]
        for batch in batches(missing, CAPTION_BATCH):
            padded = [*batch, *[batch[-1]] * (CAPTION_BATCH - len(batch))]
            text = jax.device_get(self._encode(self._text_params, self._base.text.tokenize(padded)))
            for row, caption in enumerate(batch):
                known[caption] = jax.tree.map(lambda column, row=row: column[row], text)
        for caption, row in known.items():
            remember(self._known_captions, caption, row, MAX_CAPTIONS)
        rows = [known[caption] for caption in captions]
        return jax.tree.map(lambda *columns: np.stack(columns), *rows)


def remember(store: dict[K, T], key: K, value: T, limit: int) -> T:
    """Keeps a value, in the place of the oldest where there are as many as `limit`, and returns it."""
    if key not in store and len(store) >= limit:
        del store[next(iter(store))]
    store[key] = value
    return value
