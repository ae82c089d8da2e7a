"""One device or eight, in any arrangement: the same training and the same images."""

import functools

import jax
import numpy as np
import pytest

from jaxbooth.sharding import make_mesh
from tests.commands import jaxbooth, succeed
from tests.training import run, setup

MESHES = [pytest.param((8, 1, 1), marks=pytest.mark.slow), pytest.param((2, 4, 1), marks=pytest.mark.slow), (2, 2, 2)]
ROWS, STEPS = (8, 8), 3
# Where a gradient is rounding alone, so is Adam's quotient of its moments, and a small eps would let it move weights.
SETTINGS = {"eps": 1e-3, "learning_rate": 1e-2}


def train(base, params, mesh, rows=ROWS, **settings):
    """Returns metrics, weights at the start and weights at the end."""
    made = setup(base, params, mesh, rows, **SETTINGS, **settings)
    start = jax.device_get(made.state.params)
    state, metrics = run(*made, [STEPS])
    return metrics, start, jax.device_get(state.params)


@pytest.fixture(scope="module")
def trained_on(micro, micro_params):
    return functools.partial(train, micro, micro_params)


@pytest.fixture(scope="module")
def on_one(trained_on, mesh):
    return trained_on(mesh)


def assert_same_training(found, expected):
    for name in ("loss", "instance_loss", "prior_loss", "grad_norm"):
        np.testing.assert_allclose(found[0][name], expected[0][name], rtol=1e-5)
    moved = max(np.abs(end - expected[1][name]).max() for name, end in expected[2].items())
    assert moved > 1e-3
    for name, end in expected[2].items():
        np.testing.assert_allclose(found[2][name], end, rtol=1e-6, atol=1e-4 * moved, err_msg=name)


@pytest.mark.parametrize("sizes", MESHES)
def test_losses_and_weights_do_not_depend_on_the_mesh(trained_on, on_one, sizes):
    assert_same_training(trained_on(make_mesh(*sizes)), on_one)


@pytest.mark.parametrize("family", ["zimage", pytest.param("klein", marks=pytest.mark.slow)])
def test_flow_models_do_not_depend_on_the_mesh(flow_model, mesh, family):
    model = flow_model(family)
    assert_same_training(train(*model, make_mesh(2, 2, 2)), train(*model, mesh))


@pytest.mark.slow
def test_rows_that_do_not_fill_the_devices_train_the_same(trained_on, mesh):
    assert_same_training(trained_on(make_mesh(8), rows=(3, 2)), trained_on(mesh, rows=(3, 2)))


DRAW = """
import sys
from pathlib import Path
import numpy as np
from jax import devices
from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.sharding import batch_shards, make_mesh
base = BaseModel.read(Path(sys.argv[1]), "float32")
params = load_params(base, make_mesh(devices=devices()[:1]))
params = {name: {key: np.asarray(value) for key, value in values.items()} for name, values in params.items()}
def draw(mesh):
    sampler = ImageSampler(base, mesh, SamplingConfig("ddpm", 3, 3.0, 64), 2 * batch_shards(mesh))
    # two images on each device, as for class images
    return sampler.generate(params, ["an emoji of a cat"] * 16, 1, range(16))
one = draw(make_mesh(devices=devices()[:1]))
assert len({image.tobytes() for image in one}) == 16
for sizes in ((2, 4, 1), (8, 1, 1)):
    np.testing.assert_array_equal(draw(make_mesh(*sizes)), one)
"""


def test_class_images_are_the_same_bytes_on_any_mesh(micro_model):
    """As XLA compiles them for a run; in the way of the other tests, a value in 50,000 is rounded the other way."""
    succeed(jaxbooth(micro_model, code=DRAW, flags="--xla_force_host_platform_device_count=8"))
