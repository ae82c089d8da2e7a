"""Names and joined matrices of files of a transformer alone, as diffusers' own converters take them apart."""

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)

from jaxbooth.weights.denoiser_file.layout import layout
from jaxbooth.weights.denoiser_file.names import FLUX2, Z_IMAGE, flux2_name, z_image_name

from .flow_models import FLOW_FAMILIES, transformer

FILES = {"zimage": Z_IMAGE, "klein": FLUX2}
CONVERTERS = {"zimage": convert_z_image_transformer_checkpoint_to_diffusers,
              "klein": convert_flux2_transformer_checkpoint_to_diffusers}  # fmt: skip


def state_of(family) -> dict[str, torch.Tensor]:
    return transformer(family).state_dict()


def joined(family) -> dict[str, torch.Tensor]:
    state = state_of(family)
    tensors = layout({name: tuple(value.shape) for name, value in state.items()}, FILES[family])
    arrays = {tensor.name: tensor.join([state[name].numpy() for name in tensor.sources]) for tensor in tensors}
    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_diffusers_takes_a_file_apart_into_the_same_tensors(family):
    found, expected = CONVERTERS[family](joined(family)), state_of(family)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_what_is_joined_is_split_again(family):
    state, arrays = state_of(family), joined(family)
    for tensor in layout({name: tuple(value.shape) for name, value in state.items()}, FILES[family]):
        assert tuple(arrays[tensor.name].shape) == tensor.shape
        for source in tensor.sources:
            assert torch.equal(torch.from_numpy(tensor.part(arrays[tensor.name].numpy(), source)), state[source])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("all_x_embedder.2-1.weight", "x_embedder.weight"),
        ("all_final_layer.2-1.adaLN_modulation.1.bias", "final_layer.adaLN_modulation.1.bias"),
        ("layers.11.attention.to_k.weight", "layers.11.attention.qkv.weight"),
        ("noise_refiner.0.attention.to_out.0", "noise_refiner.0.attention.out"),
        ("context_refiner.1.attention.norm_q.weight", "context_refiner.1.attention.q_norm.weight"),
        ("layers.2.feed_forward.w3.weight", "layers.2.feed_forward.w3.weight"),
        ("cap_pad_token", "cap_pad_token"),
    ],
)
def test_z_image_names(name, expected):
    assert z_image_name(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("x_embedder.weight", "img_in.weight"),
        ("transformer_blocks.12.attn.add_v_proj.weight", "double_blocks.12.txt_attn.qkv.weight"),
        ("transformer_blocks.0.attn.norm_added_k.weight", "double_blocks.0.txt_attn.norm.key_norm.scale"),
        ("transformer_blocks.0.ff_context.linear_in", "double_blocks.0.txt_mlp.0"),
        ("single_transformer_blocks.19.attn.to_qkv_mlp_proj.weight", "single_blocks.19.linear1.weight"),
        ("single_transformer_blocks.3.attn.norm_q.weight", "single_blocks.3.norm.query_norm.scale"),
        ("norm_out.linear.weight", "final_layer.adaLN_modulation.1.weight"),
    ],
)
def test_flux2_names(name, expected):
    assert flux2_name(name) == expected


@pytest.mark.parametrize(
    "name", ["time_guidance_embed.guidance_embedder.linear_1.weight", "transformer_blocks.0.attn.to_q2.weight"]
)
def test_a_name_that_no_klein_has_is_an_error(name):
    with pytest.raises(ValueError, match=f"{name} is no part of a FLUX.2 klein transformer"):
        flux2_name(name)
