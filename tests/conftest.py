"""Eight virtual CPU devices and quick compilation, set before JAX starts; commands keep their compiled programs."""

import dataclasses
import functools
import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests import shapes
from tests.xla import QUICK

os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "jaxbooth-test-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from jaxtyping import install_import_hook

# The shapes and dtypes in signatures are checked while a function is traced or called.
install_import_hook(
    ["jaxbooth.diffusion", "jaxbooth.models", "jaxbooth.training", "jaxbooth.data.latents"],
    f"{shapes.__name__}.checked",
)

import jax
import numpy as np
import pytest
import torch
from jax.sharding import Mesh

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.params import Params, abstract_module
from jaxbooth.sharding import make_mesh
from tests.browser import Browser, browser
from tests.processes import write_micro_model

jax.config.update("jax_enable_compilation_cache", False)  # here; writing a program out takes as long as compiling it
gc.set_threshold(200_000, 20, 100)  # tracing makes many objects that stay; looking through them takes a quarter of it
torch.set_num_threads(1)  # tiny models on shared cores are up to a hundred times slower with two


class FlowModel(NamedTuple):
    """A model of a flow family, and its weights on the host."""

    base: BaseModel
    params: dict[str, Params]


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Browser]:
    """A tab of a browser, which is started for the tests of one file."""
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def mesh() -> Mesh:
    """A mesh of one device."""
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def base() -> BaseModel:
    """The embedded model's structure, in float32."""
    return BaseModel.read(DEMO_MODEL, "float32")


@pytest.fixture(scope="session")
def params(base: BaseModel, mesh: Mesh) -> dict[str, Params]:
    """The embedded model's weights, in float32, on the host so that no test can donate them away."""
    loaded = load_params(base, mesh, trained=("unet", "vae", "text_encoder"))
    return {name: {key: np.asarray(value) for key, value in values.items()} for name, values in loaded.items()}


@pytest.fixture(scope="session")
def micro(base: BaseModel) -> BaseModel:
    """The embedded model with a UNet of two small levels, which compiles quickly."""
    config = dataclasses.replace(
        base.denoiser_config,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )
    network = abstract_module(lambda rngs: UNet2DConditionModel(config, Layers(rngs)))
    return dataclasses.replace(base, denoiser_config=config, denoiser=network)


@pytest.fixture(scope="session")
def micro_params(micro: BaseModel, params: dict[str, Params]) -> dict[str, Params]:
    """The embedded model's weights with a random UNet."""
    draw = np.random.default_rng(0)
    unet = {name: initial(name, leaf.shape, draw) for name, leaf in micro.denoiser.shapes.items()}
    return params | {"unet": unet}


@pytest.fixture(scope="session")
def micro_model(micro: BaseModel, micro_params: dict[str, Params], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`micro` on disk, for commands: its programs compile in about half the time of the embedded model's."""
    return write_micro_model(micro, micro_params["unet"], tmp_path_factory.mktemp("models") / "micro")


@pytest.fixture(scope="session")
def flow_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns a tiny random model of a flow family on disk."""
    from tests.flow_models import write_pipeline  # here, because diffusers takes seconds to import

    return functools.cache(lambda family: write_pipeline(family, tmp_path_factory.mktemp("flow") / family))


@pytest.fixture(scope="session")
def flow_model(flow_folder: Callable[[str], Path], mesh: Mesh) -> Callable[[str], FlowModel]:
    """Returns the same model in float32, without its text encoder."""

    def read(family: str) -> FlowModel:
        base = BaseModel.read(flow_folder(family), "float32")
        loaded = load_params(base, mesh, trained=("transformer",), components=base.resident_components)
        return FlowModel(base, jax.tree.map(np.asarray, loaded))

    return functools.cache(read)


def initial(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """Kernels of unit gain, unit scales, small biases."""
    if name.endswith("kernel"):
        return (draw.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
    return (name.endswith("scale") + 0.1 * draw.normal(size=shape)).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded randomness."""
    return np.random.default_rng(0)
