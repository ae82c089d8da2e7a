"""Features of images and prompts: CLIP (Radford et al. 2021, arXiv 2103.00020), DINO (Caron et al. 2021, arXiv
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

from jaxbooth.base.tokenizer import read_tokenizer
from jaxbooth.console.progress import progress
from jaxbooth.errors import UserError
from jaxbooth.metrics.feature_models import CLIP, CONFIG, DINO, FeatureModelFiles, FeatureModelSource, find_files
from jaxbooth.metrics.preprocess import Preprocessing, read_preprocessing
from jaxbooth.models.clip_model import CLIPModel
from jaxbooth.models.config import CLIPTextConfig, Dinov2Config, ViTConfig, read_clip_config, read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.vit import VisionTransformer
from jaxbooth.params import ModuleDef, Params, abstract_module, full_precision
from jaxbooth.sharding import batch_sharding, batch_shards, mesh_context, param_shardings, replicated
from jaxbooth.transfer import put
from jaxbooth.weights.diffusers_read import load_component
from jaxbooth.weights.names import RENAMED_IN_CLIP_MODELS, RENAMED_IN_VISION_TRANSFORMERS, Renames

BATCH = 16  # rows of one program


class FeatureProgram:
    """Rows of a network's input to normalised features, in batches of one size, so that one program does.

    Args:
        apply: (bound module, rows) -> (b, width).
        prepare: one item -> one row on the host.
        width: of a feature.
    """

    def __init__(
        self,
        network: ModuleDef,
        params: Params,
        mesh: Mesh,
        apply: Callable[[Any, Array], Array],
        prepare: Callable[[Any], np.ndarray],
        width: int,
    ):
        self.network, self.params, self.mesh = network, params, mesh
        self.apply, self.prepare, self.width = apply, prepare, width
        self.batch = -(-BATCH // batch_shards(mesh)) * batch_shards(mesh)
        self.program = jax.jit(self._trace, out_shardings=replicated(mesh))

    def _trace(self, params: Params, rows: Array) -> Array:
        with mesh_context(self.mesh), full_precision():
            features = self.apply(self.network.bind(params), rows)
            return features / jnp.linalg.norm(features, axis=-1, keepdims=True)

    def __call__(self, items: Sequence[Any]) -> np.ndarray:
        """Returns the items' (n, width) float32 features, each of length 1."""
        found = [np.zeros((0, self.width), np.float32)]
        for start in range(0, len(items), self.batch):
            rows = np.stack([self.prepare(item) for item in items[start : start + self.batch]])
            padded = rows[np.minimum(np.arange(self.batch), len(rows) - 1)]
            features = self.program(self.params, put(padded, batch_sharding(self.mesh)))
            found.append(jax.device_get(features)[: len(rows)])
        return np.concatenate(found)


class FeatureModel:
    """Features of images.

    Attributes:
        name: as the user calls it.
        fingerprint: of its weights and configurations.
    """

    def __init__(self, name: str, fingerprint: str, images: FeatureProgram):
        self.name, self.fingerprint, self._images = name, fingerprint, images

    def images(self, pixels: Sequence[np.ndarray | Image.Image]) -> np.ndarray:
        """Returns the (n, d) float32 features of n images of any size, each of length 1.

        Args:
            pixels: PIL images, or (h, w, 3) uint8 arrays.
        """
        return self._images(pixels)


class ClipFeatureModel(FeatureModel):
    """Features of images and of texts, which can be compared: their product is CLIP's similarity."""

    def __init__(self, name: str, fingerprint: str, images: FeatureProgram, texts: FeatureProgram):
        super().__init__(name, fingerprint, images)
        self._texts = texts

    def texts(self, prompts: Sequence[str]) -> np.ndarray:
        """Returns the (n, d) float32 features of n prompts, each of length 1; what exceeds CLIP's length is cut off."""
        return self._texts(prompts)


def load_clip(
    source: str, mesh: Mesh, *, revision: str | None = None, offline: bool = False, allow_pickle: bool = False
) -> ClipFeatureModel:
    """Loads a CLIP onto the devices of a mesh.

    Args:
        source: "demo" (the embedded one), a folder in transformers' layout, or a Hub id.
        revision: branch, tag or commit of a Hub model.
        offline: use only what is in the Hub's cache.
        allow_pickle: also read `.bin` files, through PyTorch.

    Raises:
        UserError: nothing usable of that name exists, or it is no CLIP.
        RunFailure: the Hub could not be reached, or the cache cannot be written.
    """
    files = find_files(CLIP, FeatureModelSource(source, revision, offline, allow_pickle))
    config = read_clip_config(files.config, str(files.folder / CONFIG))
    prepare = check_preprocessing(files, config.vision.num_channels, config.vision.image_size)
    tokenize = make_tokenize(files, config.text)
    network = abstract_module(lambda rngs: CLIPModel(config, Layers(rngs)))
    params = load_weights(network, files, mesh, RENAMED_IN_CLIP_MODELS)
    images = FeatureProgram(network, params, mesh, CLIPModel.image_features, prepare, config.projection_dim)
    texts = FeatureProgram(network, params, mesh, CLIPModel.text_features, tokenize, config.projection_dim)
    return ClipFeatureModel(source, files.fingerprint, images, texts)


def load_dino(
    source: str, mesh: Mesh, *, revision: str | None = None, offline: bool = False, allow_pickle: bool = False
) -> FeatureModel:
    """Loads a DINO or DINOv2 onto the devices of a mesh; an image's feature is that of the class token.

    Args:
        source: a folder in transformers' layout, or a Hub id.
        revision, offline, allow_pickle: as `load_clip`.

    Raises:
        UserError: nothing usable of that name exists, or it is neither of them.
        RunFailure: the Hub could not be reached, or the cache cannot be written.
    """
    files = find_files(DINO, FeatureModelSource(source, revision, offline, allow_pickle))
    kind = Dinov2Config if files.config["model_type"] == "dinov2" else ViTConfig
    config = read_config(kind, files.config, str(files.folder / CONFIG))
    prepare = check_preprocessing(files, config.num_channels)
    network = abstract_module(lambda rngs: VisionTransformer(config, Layers(rngs)))
    params = load_weights(network, files, mesh, RENAMED_IN_VISION_TRANSFORMERS)
    images = FeatureProgram(network, params, mesh, VisionTransformer.__call__, prepare, config.hidden_size)
    return FeatureModel(source, files.fingerprint, images)


def check_preprocessing(files: FeatureModelFiles, channels: int, side: int | None = None) -> Preprocessing:
    """Reads how images are prepared.

    Args:
        side: in pixels, of a network that takes no other images.

    Raises:
        UserError: see `read_preprocessing`; or the network asks for something else.
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
    """Reads the tokenizer; returns prompt -> (length,) int32, padded and cut off.

    Raises:
        UserError: there is none, or it has tokens that the network does not know.
    """
    tokenizer = read_tokenizer(files.tokenizer, config.max_position_embeddings, config.vocab_size)

    def tokenize(prompt: str) -> np.ndarray:
        length = tokenizer.model_max_length
        ids = tokenizer(prompt, padding="max_length", truncation=True, max_length=length)["input_ids"]
        return np.array(ids, np.int32)

    return tokenize


def load_weights(network: ModuleDef, files: FeatureModelFiles, mesh: Mesh, renames: Renames) -> Params:
    """Loads all weights in float32 under a progress bar."""
    with progress("load", len(network.shapes)) as bar:
        bar.note(files.folder.name)
        return load_component(files.weights, network, param_shardings(mesh), jnp.float32, bar.advance, renames)
