"""Every module family against PyTorch diffusers and transformers, on random small configurations and real weights."""

import json

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.config import (
    CLIPTextConfig,
    UNetConfig,
    read_config,
)
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import AddedConditions, UNet2DConditionModel
from jaxbooth.params import abstract_module
from tests.torch_parity import TOLERANCE, from_torch, params_from_torch, relative_error, to_torch

SD1 = {
    "block_out_channels": [32, 64, 64, 64],
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
    "sample_size": 16,
}
SD2 = SD1 | {"attention_head_dim": [1, 2, 4, 4], "use_linear_projection": True, "upcast_attention": True}
SDXL = {
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [2, 4, 8],
    "use_linear_projection": True,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
    "sample_size": 16,
}
LISTS = SDXL | {  # a list wherever diffusers takes one; levels without attention have values that nobody reads
    "layers_per_block": [1, 2, 1],
    "cross_attention_dim": [99, 24, 24],
    "attention_head_dim": [3, 4, 8],
    "transformer_layers_per_block": [7, [1, 2], [2]],
    "reverse_transformer_layers_per_block": [[1, 2], [3, 1, 2], 7],
    "only_cross_attention": [False, False, False],
    "sample_size": [16, 16],
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def unet_outputs(reference: torch.nn.Module, raw: dict, rng: np.random.Generator, remat: str = "none"):
    config = read_config(UNetConfig, raw, "unet/config.json")
    network = abstract_module(lambda rngs: UNet2DConditionModel(config, Layers(rngs)))
    sample = rng.normal(size=(2, 16, 16, 4)).astype(np.float32)
    text = rng.normal(size=(2, 7, config.text_width)).astype(np.float32)
    timesteps = np.array([3, 871])
    added, extra = None, {}
    if config.addition_embed_type:
        embeds = rng.normal(size=(2, 20)).astype(np.float32)
        times = rng.integers(0, 1024, (2, 6)).astype(np.float32)
        added = AddedConditions(embeds, times)
        extra = {"added_cond_kwargs": {"text_embeds": torch.tensor(embeds), "time_ids": torch.tensor(times)}}
    run = jax.jit(lambda p: network.bind(p)(sample, timesteps, text, added, remat=remat))
    with torch.no_grad():
        expected = reference(to_torch(sample), torch.tensor(timesteps), torch.tensor(text), **extra).sample
    return run(params_from_torch(reference, network)), from_torch(expected)


@pytest.mark.parametrize("raw", [SD1, SD2, SDXL, LISTS], ids=["sd1", "sd2", "sdxl", "lists"])
def test_unet_families_equal_diffusers(raw, rng):
    reference = diffusers.UNet2DConditionModel(**raw).eval()
    found, expected = unet_outputs(reference, dict(reference.config), rng)
    assert relative_error(found, expected) < TOLERANCE


def test_unet_with_trained_weights_equals_diffusers(rng):
    reference = diffusers.UNet2DConditionModel.from_pretrained(DEMO_MODEL / "unet", torch_dtype=torch.float32)
    raw = json.loads((DEMO_MODEL / "unet" / "config.json").read_text())
    found, expected = unet_outputs(reference, raw, rng)
    assert relative_error(found, expected) < TOLERANCE


def test_remat_does_not_change_the_output(rng):
    reference = diffusers.UNet2DConditionModel(**SD1).eval()
    found, expected = unet_outputs(reference, dict(reference.config), rng, remat="blocks")
    assert relative_error(found, expected) < TOLERANCE


def check_clip(reference: transformers.CLIPTextModel, rng: np.random.Generator) -> None:
    config = read_config(CLIPTextConfig, reference.config.to_dict(), "text_encoder/config.json")
    network = abstract_module(lambda rngs: CLIPTextModel(config, Layers(rngs)))
    ids = rng.integers(0, config.vocab_size, (3, config.max_position_embeddings)).astype(np.int32)

    def last_hidden_state(params):
        model = network.bind(params)
        return model.final_layer_norm(model(ids)[-1])

    found = jax.jit(last_hidden_state)(params_from_torch(reference, network))
    with torch.no_grad():
        expected = reference(torch.tensor(ids, dtype=torch.long)).last_hidden_state.numpy()
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_random_clip_with_twelve_layers_equals_transformers(activation, rng):
    config = transformers.CLIPTextConfig(
        vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=12, num_attention_heads=4,
        max_position_embeddings=16, hidden_act=activation,
    )  # fmt: skip
    check_clip(transformers.CLIPTextModel(config).eval(), rng)


def test_trained_clip_equals_transformers(rng):
    check_clip(transformers.CLIPTextModel.from_pretrained(DEMO_MODEL / "text_encoder", dtype=torch.float32), rng)


def test_bfloat16_unet_stays_near_float32(rng):
    reference = diffusers.UNet2DConditionModel(**SD1).eval()
    config = read_config(UNetConfig, dict(reference.config), "unet/config.json")
    sample = rng.normal(size=(1, 16, 16, 4)).astype(np.float32)
    text = rng.normal(size=(1, 7, 24)).astype(np.float32)
    outputs = []
    for dtype in (np.float32, jax.numpy.bfloat16):
        network = abstract_module(lambda rngs, dtype=dtype: UNet2DConditionModel(config, Layers(rngs, dtype)))
        params = params_from_torch(reference, network)
        outputs.append(np.asarray(jax.jit(network.bind(params))(sample, np.array([500]), text)))
    assert 1e-4 < relative_error(outputs[1], outputs[0]) < 5e-2  # 8 bits of mantissa
