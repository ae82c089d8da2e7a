"""CLIP's encoders, DINO and DINOv2 against transformers in PyTorch, on random small configurations."""

import jax
import numpy as np
import pytest
import torch
import transformers

from jaxbooth.errors import UserError
from jaxbooth.models.clip import CLIPModel
from jaxbooth.models.config import Dinov2Config, ViTConfig, read_clip_config, read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.vit import VisionTransformer, cubic_weights
from jaxbooth.params import abstract_module
from jaxbooth.weights.names import RENAMED_IN_CLIP_MODELS, RENAMED_IN_VISION_TRANSFORMERS
from tests.torch_parity import params_from_torch, relative_error, to_torch

TOLERANCE = 1e-5  # of the output's scale
SMALL = {"hidden_size": 32, "num_hidden_layers": 12, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 12, "num_attention_heads": 4,
        "vocab_size": 99, "max_position_embeddings": 16, "bos_token_id": 97, "eos_token_id": 98}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Moves every parameter off its initial value, so that scales, biases and tokens count."""
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn(value.shape)
    return model.eval()


def clip_in_torch(**text) -> transformers.CLIPModel:
    vision = SMALL | {"intermediate_size": 64, "hidden_act": "gelu"}
    return shaken(
        transformers.CLIPModel(
            transformers.CLIPConfig(text_config=TEXT | text, vision_config=vision, projection_dim=20)
        )
    )


def in_jax(reference: transformers.CLIPModel):
    config = read_clip_config(reference.config.to_dict(), "config.json")
    network = abstract_module(lambda rngs: CLIPModel(config, Layers(rngs)))
    return network, params_from_torch(reference, network, RENAMED_IN_CLIP_MODELS)


def test_clip_image_features_equal_transformers(rng):
    reference = clip_in_torch()
    network, params = in_jax(reference)
    pixels = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    found = jax.jit(lambda p: network.bind(p).image_features(pixels))(params)
    with torch.no_grad():
        expected = reference.get_image_features(to_torch(pixels)).pooler_output.numpy()
    assert found.shape == (3, 20)
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("end", [98, 2], ids=["end token", "old configurations: highest id"])
def test_clip_text_features_equal_transformers(end, rng):
    reference = clip_in_torch(eos_token_id=end)
    network, params = in_jax(reference)
    ids = rng.integers(3, 97, (3, 16)).astype(np.int32)
    ids[0, 5], ids[1, 15], ids[2, 9:] = 98, 98, 98
    found = jax.jit(lambda p: network.bind(p).text_features(ids))(params)
    with torch.no_grad():
        expected = reference.get_text_features(torch.tensor(ids, dtype=torch.long)).pooler_output.numpy()
    assert relative_error(found, expected) < TOLERANCE


def vit_features(reference: torch.nn.Module, kind: type, pixels: np.ndarray) -> np.ndarray:
    config = read_config(kind, reference.config.to_dict(), "config.json")
    network = abstract_module(lambda rngs: VisionTransformer(config, Layers(rngs)))
    params = params_from_torch(reference, network, RENAMED_IN_VISION_TRANSFORMERS)
    return jax.jit(lambda p: network.bind(p)(pixels))(params)


@pytest.mark.parametrize("side", [32, 48], ids=["as trained", "larger"])
@pytest.mark.parametrize("bias", [True, False])
def test_dino_features_equal_transformers(bias, side, rng):
    config = transformers.ViTConfig(**SMALL, intermediate_size=64, qkv_bias=bias)
    reference = shaken(transformers.ViTModel(config))
    pixels = rng.normal(size=(3, side, side, 3)).astype(np.float32)
    with torch.no_grad():
        output = reference(to_torch(pixels), interpolate_pos_encoding=True)
    found = vit_features(reference, ViTConfig, pixels)
    assert relative_error(found, output.last_hidden_state[:, 0].numpy()) < TOLERANCE


@pytest.mark.parametrize("size", [(32, 32), (56, 56), (16, 24)], ids=["as trained", "larger", "smaller, not square"])
def test_dinov2_features_equal_transformers(size, rng):
    reference = shaken(transformers.Dinov2Model(transformers.Dinov2Config(**SMALL)))
    pixels = rng.normal(size=(2, *size, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(to_torch(pixels)).last_hidden_state[:, 0].numpy()
    assert relative_error(vit_features(reference, Dinov2Config, pixels), expected) < TOLERANCE


@pytest.mark.parametrize(("entries", "wanted"), [(37, 16), (37, 37), (5, 12)])
def test_positions_are_resized_as_in_torch(entries, wanted, rng):
    grid = rng.normal(size=(1, 1, entries, entries))
    expected = torch.nn.functional.interpolate(torch.tensor(grid), size=(wanted, wanted), mode="bicubic")
    weights = cubic_weights(entries, wanted)
    np.testing.assert_allclose(weights @ grid[0, 0] @ weights.T, expected[0, 0].numpy(), atol=1e-12)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)


def test_an_unknown_activation_is_named():
    config = read_config(ViTConfig, {"hidden_act": "swish"}, "config.json")
    with pytest.raises(UserError, match="hidden_act 'swish' is not supported"):
        abstract_module(lambda rngs: VisionTransformer(config, Layers(rngs)))
