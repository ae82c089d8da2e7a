"""The names in single files, against diffusers' own readers of them."""

import json

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from transformers import CLIPTextConfig as TorchCLIPTextConfig
from transformers import CLIPTextModelWithProjection

from jaxbooth.models.config import CLIPTextConfig, UNetConfig, VAEConfig, read_config
from jaxbooth.weights.architectures import LDM_FAMILIES, PUBLISHED
from jaxbooth.weights.ldm.layout import text_encoder_layout
from jaxbooth.weights.ldm.names import UNET_PREFIX, VAE_PREFIX, clip_key, openclip_key, unet_key, vae_key

from . import small_models

UNETS = {name: json.loads((PUBLISHED[name].folder / "unet" / "config.json").read_text()) for name in LDM_FAMILIES}
UNETS |= {f"small {name}": config for name, config in small_models.UNETS.items()}
VAES = {name: json.loads((PUBLISHED[name].folder / "vae" / "config.json").read_text()) for name in LDM_FAMILIES}
VAES |= {"small": small_models.VAE}


def names_of(kind: type, config: dict) -> list[str]:
    with torch.device("meta"):
        return list(kind.from_config(config).state_dict())


@pytest.mark.parametrize("model", UNETS)
def test_diffusers_finds_every_tensor_of_a_unet_under_its_name(model):
    config = UNETS[model]
    names = names_of(UNet2DConditionModel, config)
    typed = read_config(UNetConfig, config, model)
    single = {UNET_PREFIX + unet_key(name, typed): name for name in names}
    assert convert_ldm_unet_checkpoint(single, config) == {name: name for name in names}


@pytest.mark.parametrize("model", VAES)
def test_diffusers_finds_every_tensor_of_a_vae_under_its_name(model):
    config = VAES[model]
    typed = read_config(VAEConfig, config, model)
    names = names_of(AutoencoderKL, config)
    single = {VAE_PREFIX + vae_key(name, typed): torch.full((1,), index) for index, name in enumerate(names)}
    found = convert_ldm_vae_checkpoint(single, config)
    assert {name: int(value) for name, value in found.items()} == {name: index for index, name in enumerate(names)}


def small_tower() -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(TorchCLIPTextConfig(**small_models.OPENCLIP | {"projection_dim": 16}))


def test_diffusers_finds_every_tensor_of_a_clip_tower_under_its_name():
    names = [name for name in small_tower().state_dict() if name.startswith("text_model.")]
    single = {f"cond_stage_model.transformer.{clip_key(name)}": name for name in names}
    assert convert_ldm_clip_checkpoint(single) == {name: name for name in names}


def test_diffusers_finds_every_tensor_of_an_openclip_tower_with_its_content():
    tower = small_tower()
    expected = tower.state_dict()
    config = read_config(CLIPTextConfig, small_models.OPENCLIP | {"projection_dim": 16}, "tower")
    stem = "conditioner.embedders.1."
    arrays = {name.removeprefix("text_model."): value.numpy() for name, value in expected.items()}
    single = {
        entry.name: torch.from_numpy(entry.join([arrays[source] for source in entry.sources]).copy())
        for entry in text_encoder_layout(stem, config, projected=True)
        if not entry.is_placeholder
    }
    found = convert_open_clip_checkpoint(tower, single, prefix=f"{stem}model.")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("down_blocks.1.attentions.0.proj_in.weight", "input_blocks.4.1.proj_in.weight"),
        ("down_blocks.2.downsamplers.0.conv.bias", "input_blocks.9.0.op.bias"),
        ("mid_block.resnets.1.time_emb_proj.weight", "middle_block.2.emb_layers.1.weight"),
        ("up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        ("up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
        ("time_embedding.linear_2.bias", "time_embed.2.bias"),
        ("conv_norm_out.weight", "out.0.weight"),
        ("up_blocks.3.resnets.2", "output_blocks.11.0"),
    ],
)
def test_unet_names_of_sd_1_5(name, expected):
    assert unet_key(name, read_config(UNetConfig, UNETS["sd15"], "unet")) == expected


@pytest.mark.parametrize("name", ["class_embedding.weight", "down_blocks.0.motion_modules.0.weight", "lora_te"])
def test_a_name_that_no_unet_has_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} is no part"):
        unet_key(name, UNetConfig())


def test_vae_levels_of_the_way_up_are_counted_from_the_top():
    config = read_config(VAEConfig, VAES["sd15"], "vae")
    assert vae_key("decoder.up_blocks.0.upsamplers.0.conv.weight", config) == "decoder.up.3.upsample.conv.weight"
    assert vae_key("encoder.down_blocks.0.resnets.1.norm1.bias", config) == "encoder.down.0.block.1.norm1.bias"
    assert vae_key("encoder.mid_block.attentions.0.to_out.0.bias", config) == "encoder.mid.attn_1.proj_out.bias"


def test_ldm_names_of_a_vae_stay_as_they_are():
    config = read_config(VAEConfig, VAES["sd15"], "vae")
    single = [vae_key(name, config) for name in names_of(AutoencoderKL, VAES["sd15"])]
    assert [vae_key(name, config) for name in single] == single


def test_query_key_and_value_share_one_openclip_name():
    names = [f"text_model.encoder.layers.7.self_attn.{letter}_proj.bias" for letter in "qkv"]
    assert {openclip_key(name) for name in names} == {"transformer.resblocks.7.attn.in_proj_bias"}
