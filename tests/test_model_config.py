"""Configurations of models: what jaxbooth does not implement is refused by name, and values are checked."""

import math
import re

import pytest

from jaxbooth.errors import UserError
from jaxbooth.models.config import (
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Flux2Config,
    Flux2VAEConfig,
    UNetConfig,
    VAEConfig,
    ViTConfig,
    read_config,
)
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.params import abstract_module
from tests.test_models import SD1


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
        (CLIPTextConfig, "attention_dropout", False),
        (ViTConfig, "pruned_heads", {"0": [1]}),
        (Flux2Config, "patch_size", 2),
        (Flux2VAEConfig, "scaling_factor", 0.3611),
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
        Flux2VAEConfig: ("latent_channels", "norm_num_groups", "layers_per_block"),
        Flux2Config: ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim"),
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
    yield from ((VAEConfig, "shift_factor", value) for value in ("0.1", True, math.nan, 1e300, [0.1]))
    yield from ((Flux2Config, "out_channels", value) for value in (0, 128.0, "128", [128]))
    yield from ((Flux2Config, "axes_dims_rope", value) for value in ([32] * 3, [31, 33, 32, 32], 32, [32.0] * 4, None))
    yield from ((Flux2Config, "mlp_ratio", value) for value in (0, -3, None, "3", 1e300))
    yield from ((Flux2Config, "guidance_embeds", value) for value in (None, 0, "false"))
    yield from ((Flux2VAEConfig, "patch_size", value) for value in (None, 0, [2, 1], [2], 2.0, "2", 99))
    yield from ((Flux2VAEConfig, "batch_norm_eps", value) for value in (None, 0, -1e-4, math.nan))
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
        (Flux2VAEConfig, {"decoder_block_out_channels": [96] * 3}, "decoder_block_out_channels has 3 entries for 4"),
        (Flux2VAEConfig, {"decoder_block_out_channels": [90] * 4}, "norm_num_groups 32 does not divide 90 channels"),
        (Flux2Config, {"attention_head_dim": 64},
         "axes_dims_rope [32, 32, 32, 32] do not sum up to attention_head_dim 64"),
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
