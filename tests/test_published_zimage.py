"""The shipped configurations of Z-Image against PyTorch: every parameter's name and shape, and what the files say."""

import json

import diffusers
import numpy as np
import pytest
import torch
import transformers

from jaxbooth.assets import ASSETS
from jaxbooth.models.config import read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.qwen3 import Qwen3Model
from jaxbooth.models.qwen3_config import Qwen3Config
from jaxbooth.models.vae import AutoencoderKL
from jaxbooth.models.vae_config import VAEConfig
from jaxbooth.models.zimage import ZImageTransformer2DModel
from jaxbooth.models.zimage_config import ZImageConfig
from jaxbooth.params import abstract_module
from jaxbooth.weights.names import torch_name, torch_shape

FOLDER = ASSETS / "families" / "zimage"
COMPONENTS = {
    "transformer": (ZImageConfig, ZImageTransformer2DModel, 6_154_908_736),
    "vae": (VAEConfig, AutoencoderKL, 83_819_683),
    "text_encoder": (Qwen3Config, Qwen3Model, 4_022_468_096),
}


def raw(component, file="config.json"):
    return json.loads((FOLDER / component / file).read_text())


def in_torch(component):
    """The module that `model_index.json` names, without memory for its weights."""
    library, name = raw("", "model_index.json")[component]
    with torch.device("meta"):
        if library == "diffusers":
            return getattr(diffusers, name).from_config(raw(component))
        return getattr(transformers, name)(transformers.Qwen3Config(**raw(component)))


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_name_and_shape_is_pytorchs(component):
    config_type, module, count = COMPONENTS[component]
    config = read_config(config_type, raw(component), f"{component}/config.json")
    shapes = abstract_module(lambda rngs: module(config, Layers(rngs))).shapes
    ours = {torch_name(name): torch_shape(name, leaf.shape) for name, leaf in shapes.items()}
    assert ours == {name: tuple(tensor.shape) for name, tensor in in_torch(component).state_dict().items()}
    assert sum(leaf.size for leaf in shapes.values()) == count


def test_the_schedule_is_shifted_sixfold():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(raw("scheduler", "scheduler_config.json"))
    linear = np.linspace(1, 1e-3, 1000)
    np.testing.assert_allclose(scheduler.sigmas, 6 * linear / (1 + 5 * linear), rtol=1e-6)


def test_the_parts_fit_each_other():
    transformer, text, vae = raw("transformer"), raw("text_encoder"), raw("vae")
    assert transformer["cap_feat_dim"] == text["hidden_size"]
    assert transformer["in_channels"] == vae["latent_channels"]
