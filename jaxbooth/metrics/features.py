"""Features of images and texts: CLIP (Radford et al. 2021, arXiv 2103.00020), DINO (Caron et al. 2021, arXiv
2104.14294) and DINOv2 (Oquab et al. 2023, arXiv 2304.07193).

Everything is computed in float32, whatever dtype the files have.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from PIL import Image

from jaxbooth.base.tokenizer_files import read_tokenizer
from jaxbooth.console.progress import progress
from jaxbooth.distributed.arrays import put
from jaxbooth.errors import UserError
from jaxbooth.metrics.feature_models import CLIP, CONFIG, DINO, FeatureModelFiles, find_files
from jaxbooth.metrics.preprocess import Preprocessing, read_preprocessing
from jaxbooth.models.clip import CLIPModel
from jaxbooth.models.config import CLIPTextConfig, Dinov2Config, ViTConfig, read_clip_config, read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.vit import VisionTransformer
from jaxbooth.params import ModuleDef, Params, abstract_module, full_precision
from jaxbooth.sharding import batch_sharding, batch_shards, mesh_context, param_shardings, replicated
from jaxbooth.weights.diffusers_read import load_component
from jaxbooth.weights.names import RENAMED_IN_CLIP_MODELS, RENAMED_IN_VISION_TRANSFORMERS, Renames
from jaxbooth.weights.source import Source

BATCH_SIZE = 16


class FeatureProgram:
    """A compiled program from inputs to unit features; every batch has the same size, so that it is compiled once.

    Args:
        apply: (bound module, rows) -> (b, width) features.
        prepare: one input -> one row on the host.
        width: of a feature.
    """

    def __init__(
        self,
        module: ModuleDef,
        params: Params,
        mesh: Mesh,
        apply: Callable[[Any, Array], Array],
        prepare: Callable[[Any], np.ndarray],
        width: int,
    ):
        self.module, self.params, self.mesh = module, params, mesh
        self.apply, self.prepare, self.width = apply, prepare, width
        self.batch_size = -(-BATCH_SIZE // batch_shards(mesh)) * batch_shards(mesh)
        self.program = jax.jit(self._trace, out_shardings=replicated(mesh))

    def _trace(self, params: Params, rows: Array) -> Array:
        with mesh_context(self.mesh), full_precision():
            features = self.apply(self.module.bind(params), rows)
            return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    def __call__(self, inputs: Sequence[Any]) -> np.ndarray:
        """Returns the (n, width) float32 features of n inputs, each of length 1."""
        batches = [np.zeros((0, self.width), np.float32)]
        for start in range(0, len(inputs), self.batch_size):
            rows = np.stack([self.prepare(item) for item in inputs[start : start + self.batch_size]])
            padded = rows[np.minimum(np.arange(self.batch_size), len(rows) - 1)]
            features = self.program(self.params, put(padded, batch_sharding(self.mesh)))
            batches.append(jax.device_get(features)[: len(rows)])
        return np.concatenate(batches)


class FeatureModel:
    """Computes features of images.

    Attributes:
        name: as the user calls it.
        fingerprint: of its weights and configurations.
    """

    def __init__(self, name: str, fingerprint: str, images: FeatureProgram):
        self.name, self.fingerprint, self._images = name, fingerprint, images

    def image_features(self, images: Sequence[np.ndarray | Image.Image]) -> np.ndarray:
        """Returns the (n, d) float32 features of n images of any size, each of length 1.

        Args:
            images: PIL images, or (h, w, 3) uint8 arrays.
        """
        return self._images(images)


class ClipFeatureModel(FeatureModel):
    """Computes features of images and of texts, whose dot product is CLIP's similarity."""

    def __init__(self, name: str, fingerprint: str, images: FeatureProgram, texts: FeatureProgram):
        super().__init__(name, fingerprint, images)
        self._texts = texts

    def text_features(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the (n, d) float32 features of n texts, each of length 1; long texts are truncated."""
        return self._texts(texts)


def load_clip(source: Source, mesh: Mesh) -> ClipFeatureModel:
    """Loads a CLIP onto the devices of a mesh.

    Args:
        source: "demo" (the embedded one), a folder in transformers' layout, or a Hub id.

    Raises:
        UserError: nothing usable of that name exists, or it is no CLIP.
        RunFailure: the Hub could not be reached, or the cache cannot be written.
    """
    files = find_files(CLIP, source)
    config = read_clip_config(files.config, str(files.folder / CONFIG))
    preprocess = load_preprocessing(files, config.vision.num_channels, config.vision.image_size)
    tokenize = make_tokenize(files, config.text)
    module = abstract_module(lambda rngs: CLIPModel(config, Layers(rngs)))
    params = load_weights(module, files, mesh, RENAMED_IN_CLIP_MODELS)
    images = FeatureProgram(module, params, mesh, CLIPModel.image_features, preprocess, config.projection_dim)
    texts = FeatureProgram(module, params, mesh, CLIPModel.text_features, tokenize, config.projection_dim)
    return ClipFeatureModel(source.name, files.fingerprint, images, texts)


def load_dino(source: Source, mesh: Mesh) -> FeatureModel:
    """Loads a DINO or DINOv2 onto the devices of a mesh; an image's feature is that of the class token.

    Args:
        source: a folder in transformers' layout, or a Hub id.

    Raises:
        UserError: nothing usable of that name exists, or it is neither of them.
        RunFailure: the Hub could not be reached, or the cache cannot be written.
    """
    files = find_files(DINO, source)
    config_class = Dinov2Config if files.config["model_type"] == "dinov2" else ViTConfig
    config = read_config(config_class, files.config, str(files.folder / CONFIG))
    preprocess = load_preprocessing(files, config.num_channels)
    module = abstract_module(lambda rngs: VisionTransformer(config, Layers(rngs)))
    params = load_weights(module, files, mesh, RENAMED_IN_VISION_TRANSFORMERS)
    images = FeatureProgram(module, params, mesh, VisionTransformer.__call__, preprocess, config.hidden_size)
    return FeatureModel(source.name, files.fingerprint, images)


def load_preprocessing(files: FeatureModelFiles, channels: int, side: int | None = None) -> Preprocessing:
    """Reads how images are prepared, and checks that the model takes what comes out.

    Args:
        channels: of the model's input.
        side: in pixels, of a model that takes images of one size only.

    Raises:
        UserError: see `read_preprocessing`; or the model takes another input.
    """
    if channels != 3:
        raise UserError(f"{files.folder / CONFIG}: num_channels {channels} is not supported; images have 3.")
    preprocessing = read_preprocessing(files.folder, files.config["model_type"])
    if side and preprocessing.size != (side, side):
        height, width = preprocessing.size
        raise UserError(
            f"{files.folder}: preprocessor_config.json makes images of {height}x{width} pixels, but config.json asks "
            f"for {side}x{side}; fetch the model again."
        )
    return preprocessing


def make_tokenize(files: FeatureModelFiles, config: CLIPTextConfig) -> Callable[[str], np.ndarray]:
    """Reads the tokenizer; returns text -> (length,) int32 token ids, padded and truncated.

    Raises:
        UserError: there is none, or it has tokens that the model does not know.
    """
    tokenizer = read_tokenizer(files.tokenizer, config.max_position_embeddings, config.vocab_size)

    def tokenize(text: str) -> np.ndarray:
        length = tokenizer.model_max_length
        ids = tokenizer(text, padding="max_length", truncation=True, max_length=length)["input_ids"]
        return np.array(ids, np.int32)

    return tokenize


def load_weights(module: ModuleDef, files: FeatureModelFiles, mesh: Mesh, renames: Renames) -> Params:
    """Loads all weights in float32 under a progress bar."""
    with progress("load", len(module.shapes)) as bar:
        bar.set_postfix(files.folder.name)
        return load_component(files.weights, module, param_shardings(mesh), jnp.float32, bar.advance, renames)
