"""Every module family against PyTorch diffusers and transformers, on random small configurations and real weights."""

import json
import math
import re

import diffusers
import jax
import numpy as np
import pytest
import torch
import transformers

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.errors import UserError
from jaxbooth.models.clip import CLIPTextModel
from jaxbooth.models.config import (
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    UNetConfig,
    VAEConfig,
    ViTConfig,
    read_config,
)
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import AddedConditions, UNet2DConditionModel
from jaxbooth.models.vae import AutoencoderKL
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
VAE = {
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "norm_num_groups": 8,
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


def check_vae(reference: diffusers.AutoencoderKL, rng: np.random.Generator) -> None:
    config = read_config(VAEConfig, dict(reference.config), "vae/config.json")
    network = abstract_module(lambda rngs: AutoencoderKL(config, Layers(rngs)))
    params = params_from_torch(reference, network)
    pixels = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    latents = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)
    moments = jax.jit(lambda p: network.bind(p).encode(pixels))(params)
    decoded = jax.jit(lambda p: network.bind(p).decode(latents))(params)
    with torch.no_grad():
        posterior = reference.encode(to_torch(pixels)).latent_dist
        expected = reference.decode(to_torch(latents)).sample
    assert relative_error(moments.mean, from_torch(posterior.mean)) < TOLERANCE
    assert relative_error(moments.logvar, from_torch(posterior.logvar)) < TOLERANCE
    assert relative_error(decoded, from_torch(expected)) < TOLERANCE


def test_random_vae_equals_diffusers(rng):
    check_vae(diffusers.AutoencoderKL(**VAE).eval(), rng)


def test_trained_vae_equals_diffusers(rng):
    check_vae(diffusers.AutoencoderKL.from_pretrained(DEMO_MODEL / "vae", torch_dtype=torch.float32), rng)


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


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (UNetConfig, "class_embed_type", "timestep"),
        (UNetConfig, "resnet_time_scale_shift", "scale_shift"),
        (UNetConfig, "dual_cross_attention", True),
        (VAEConfig, "latents_mean", [0.1]),
        (CLIPTextConfig, "attention_dropout", 0.1),
        (UNetConfig, "a_key_from_the_future", 3),
        (UNetConfig, "a_key_from_the_future", 0),
        # 0 equals False in Python, and is another number than the neutral one
        (UNetConfig, "downsample_padding", 0),
        (UNetConfig, "downsample_padding", False),
        (UNetConfig, "downsample_padding", None),
        (UNetConfig, "mid_block_scale_factor", 0),
        (UNetConfig, "mid_block_scale_factor", True),
        (UNetConfig, "resnet_out_scale_factor", 0),
        (UNetConfig, "conv_in_kernel", 0),
        (UNetConfig, "mid_block_type", None),
        (UNetConfig, "num_attention_heads", 8),
        (UNetConfig, "only_cross_attention", [False, True]),
        (VAEConfig, "shift_factor", 0.1),
        (CLIPTextConfig, "attention_dropout", False),
        (ViTConfig, "pruned_heads", {"0": [1]}),
    ],
)
def test_a_key_that_is_not_implemented_is_named(kind, key, value):
    with pytest.raises(UserError, match=key):
        read_config(kind, {key: value}, "config.json")


def test_a_key_that_no_terminal_can_show_is_named_in_ascii():
    with pytest.raises(UserError, match=r"^config\.json: caf\\xe9\\ud800\\x00 = 1 is not supported; "):
        read_config(UNetConfig, {"caf\xe9\ud800\x00": 1}, "config.json")


def test_an_unknown_key_at_rest_is_accepted():
    assert read_config(UNetConfig, {"a_key_from_the_future": None, "_version": 3}, "config.json") == UNetConfig()


@pytest.mark.parametrize(
    ("key", "value"), [("mid_block_scale_factor", 1.0), ("dropout", 0), ("only_cross_attention", [])]
)
def test_a_neutral_value_may_be_written_otherwise(key, value):
    assert read_config(UNetConfig, {key: value}, "config.json") == UNetConfig()


WRONG_INTEGERS = (None, True, "3", 3.0, 0, -1, 10**9, 10**400, [], {}, math.nan)


def mistyped():
    """Cases of a value that has another type than its key, or is out of range."""
    integers = {
        UNetConfig: ("in_channels", "norm_num_groups", "layers_per_block", "cross_attention_dim", "attention_head_dim"),
        VAEConfig: ("latent_channels", "norm_num_groups", "layers_per_block", "in_channels", "out_channels"),
        CLIPTextConfig: ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                         "max_position_embeddings", "projection_dim"),
        CLIPVisionConfig: ("image_size", "patch_size", "num_channels"),
        ViTConfig: ("image_size", "hidden_size", "num_hidden_layers"),
    }  # fmt: skip
    yield from ((kind, key, value) for kind, keys in integers.items() for key in keys for value in WRONG_INTEGERS)
    yield from ((UNetConfig, "sample_size", value) for value in (0, -1, 16.0, "16", True, 10**9, [16, 8], [16]))
    widths = ("320", [320, 640, 1280, 0], [320.0] * 4, [[320]] * 4, 320, None, [], [32] * 10**5)
    yield from ((UNetConfig, "block_out_channels", value) for value in widths)
    yield from (
        (UNetConfig, key, value)
        for key in ("down_block_types", "up_block_types")
        for value in (None, "a", [1], ["DownBlock2D"] * 3)
    )
    yield from (
        (UNetConfig, key, value) for key in ("norm_eps", "freq_shift") for value in (None, -1, "0", True, math.nan, 7)
    )
    yield from (
        (UNetConfig, key, value)
        for key in ("flip_sin_to_cos", "use_linear_projection")
        for value in (None, 0, 1, "true")
    )
    yield from (
        (VAEConfig, "scaling_factor", value) for value in (0, -0.18, math.nan, math.inf, None, "0.18", True, 1e300)
    )
    yield from ((VAEConfig, "use_quant_conv", value) for value in (0, 1, None, "false"))
    yield from ((CLIPTextConfig, "eos_token_id", value) for value in (-1, 2.0, [2], None, "2"))
    yield from ((CLIPTextConfig, "layer_norm_eps", value) for value in (0, -1e-5, None, math.inf))
    yield from ((Dinov2Config, "mlp_ratio", value) for value in (0, -4, 1e300, None, "4"))


@pytest.mark.parametrize(("kind", "key", "value"), list(mistyped()))
def test_a_value_of_another_type_or_out_of_range_is_named(kind, key, value):
    with pytest.raises(UserError, match=rf"^unet/config\.json: {key} ") as raised:
        read_config(kind, {key: value}, "unet/config.json")
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        (UNetConfig, {"norm_num_groups": 30}, "norm_num_groups 30 does not divide 320 channels"),
        (UNetConfig, {"attention_head_dim": 7}, "attention_head_dim 7 does not divide 320 channels"),
        (UNetConfig, {"attention_head_dim": [8, 8, 8]}, "attention_head_dim has 3 entries for 4 levels"),
        (UNetConfig, {"layers_per_block": [2] * 5}, "layers_per_block has 5 entries for 4 levels"),
        (UNetConfig, {"cross_attention_dim": [768, 768, 1024, 1024]}, "cross_attention_dim [768, 1024] differs"),
        (UNetConfig, {"transformer_layers_per_block": [1, 1, [1, 1], 1]}, "needs reverse_transformer_layers_per_block"),
        (UNetConfig, {"transformer_layers_per_block": [1, 1, [1], 1], "reverse_transformer_layers_per_block": [1] * 4},
         "transformer_layers_per_block has a list of 1 for a level of 2 ResNets"),
        (UNetConfig, {"transformer_layers_per_block": 64, "layers_per_block": 16}, "asks for more than 512 blocks"),
        (UNetConfig, {"block_out_channels": [33, 66, 66, 66], "norm_num_groups": 33, "attention_head_dim": 33},
         "block_out_channels 33 is odd"),
        (UNetConfig, {"addition_embed_type": "text_time"}, "addition_time_embed_dim is missing"),
        (VAEConfig, {"norm_num_groups": 30}, "norm_num_groups 30 does not divide 64 channels"),
        (VAEConfig, {"block_out_channels": [32, 64]}, "down_block_types has 1 entries for 2 levels"),
        (CLIPTextConfig, {"num_attention_heads": 7}, "num_attention_heads 7 does not divide 512 channels"),
        (ViTConfig, {"image_size": 8}, "patch_size 16 is larger than image_size 8"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_each_other_are_named(kind, changes, named):
    with pytest.raises(UserError, match=re.escape(named)):
        read_config(kind, changes, "config.json")


def test_an_unknown_block_type_is_named():
    config = read_config(UNetConfig, SD1 | {"down_block_types": ["AttnDownBlock2D"] * 4}, "config.json")
    with pytest.raises(UserError, match="AttnDownBlock2D"):
        abstract_module(lambda rngs: UNet2DConditionModel(config, Layers(rngs)))
