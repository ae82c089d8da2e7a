"""Blocks that are alike are traced and lowered once: a deeper model makes more calls, and no more functions."""

import jax
import jax.numpy as jnp
import pytest

from jaxbooth.models.adapter_kinds import lora_spec
from jaxbooth.models.config import UNetConfig
from jaxbooth.models.layers import Layers
from jaxbooth.models.lora import lora_shapes, with_adapters
from jaxbooth.models.lora_targets import target_layers
from jaxbooth.models.remat import REMATS
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.params import abstract_module
from jaxbooth.sharding import make_mesh, mesh_context

SHALLOW, DEEP = 2, 5
WIDTH, CONTEXT = 64, 24


def program(layers, remat="none", targets=None, sizes=(8, 1, 1)):
    """Returns the text of a UNet's gradient before the compiler.

    Args:
        layers: transformer blocks after each ResNet.
        targets: of adapters, if there are any.
        sizes: of the mesh.
    """
    config = UNetConfig(
        block_out_channels=(32, WIDTH), layers_per_block=1, cross_attention_dim=CONTEXT, norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, transformer_layers_per_block=(1, layers),
    )  # fmt: skip
    network = abstract_module(lambda rngs: UNet2DConditionModel(config, Layers(rngs)))
    shapes = network.shapes
    if targets:
        lora = lora_spec(rank=4, alpha=None, rslora=False)
        shapes = shapes | lora_shapes(network, target_layers(network, "unet", targets), lora)
        network = with_adapters(network, lora)

    def loss(params, sample, timesteps, context):
        with mesh_context(make_mesh(*sizes)):
            return jnp.sum(network.bind(params)(sample, timesteps, context, remat=remat))

    inputs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 8, 8, 4), (8,), (8, 6, CONTEXT)))
    return jax.jit(jax.grad(loss)).lower(shapes, *inputs).as_text()


def functions(layers, **settings):
    """How many functions a program of so many layers has."""
    return program(layers, **settings).count("func.func")


@pytest.mark.parametrize("remat", REMATS)
def test_depth_adds_calls_and_no_functions(remat):
    shallow, deep = program(SHALLOW, remat), program(DEEP, remat)
    assert deep.count("func.func") == shallow.count("func.func")
    assert deep.count("call @") > shallow.count("call @")


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)])
def test_blocks_whose_parameters_are_cut_alike_are_alike(sizes):
    assert functions(DEEP, sizes=sizes) == functions(SHALLOW, sizes=sizes)


def test_blocks_with_the_same_adapters_are_alike():
    assert functions(DEEP, targets="attention") == functions(SHALLOW, targets="attention")


def test_a_block_with_an_adapter_of_its_own_is_another_one():
    first = r"unet\.mid_block.*transformer_blocks\.0\.attn1\.to_q"
    assert functions(SHALLOW, targets=first) > functions(SHALLOW)
