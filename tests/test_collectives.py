"""What the compiled train step exchanges between eight devices: parameters, gradients, scalars, and never the batch."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys

import pytest

from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.params import abstract_module
from jaxbooth.sharding import make_mesh
from tests.compiled import exchanges, in_use, kinds, lower_step, sides, stored_shapes, used_shapes

ROWS = (8, 8)
PER_DEVICE = 2  # rows of eight devices; of four with two parts each, twice as many


def compile_on(base, sizes, rows=ROWS, **settings):
    """Returns mesh, step and the compiled program's text."""
    many = make_mesh(*sizes)
    step = lower_step(base, many, rows, **settings)
    return many, step, step.lowered.compile().as_text()


def shapes_of(program, kind):
    return [sides(shape) for found, shape in exchanges(program) if found == kind]


def all_gradients(step):
    return sorted(sides(used) for name, shape in step.parameters.items() for used in in_use(name, shape))


def test_copies_of_the_model_exchange_gradients_and_scalars_alone(micro):
    _, step, program = compile_on(micro, (8, 1, 1))
    assert set(kinds(program)) == {"all-reduce"}
    reduced = shapes_of(program, "all-reduce")
    assert sorted(shape for shape in reduced if shape) == all_gradients(step)


def test_pieces_of_parameters_are_gathered_and_their_gradients_reduced(micro):
    many, step, program = compile_on(micro, (2, 4, 1))
    assert set(kinds(program)) == {"all-gather", "all-reduce"}
    stored = stored_shapes(step, many)
    cut = {name: shape for name, shape in step.parameters.items() if stored[name] != shape}
    gathered = [sides(used) for name, shape in cut.items() for used in in_use(name, shape)]
    assert sorted(shapes_of(program, "all-gather")) == sorted(gathered)  # each once
    assert sorted(shape for shape in shapes_of(program, "all-reduce") if shape) == all_gradients(step)


def test_split_projections_also_reduce_their_products(micro):
    check_tensor(*compile_on(micro, (2, 2, 2)), 2 * PER_DEVICE)


def check_tensor(many, step, program, rows):
    """Checks a program of a mesh with all three axes."""
    assert set(kinds(program)) == {"all-gather", "all-reduce"}
    pieces = {*used_shapes(step, many).values(), *stored_shapes(step, many).values(), *step.parameters.values()}
    halves = {(*shape[:-1], shape[-1] // 2) for shape in pieces if shape}
    known = {sides(shape) for shape in pieces | halves}
    assert set(shapes_of(program, "all-gather")) <= known
    products = [
        shape
        for kind, shape in exchanges(program)
        if kind == "all-reduce" and sides(shape) not in known and sides(shape)
    ]
    assert products
    assert all(len(shape) == 3 and shape[0] == rows for shape in products)  # (rows, tokens, width) of this device


VARIANTS = {
    "text": {"text_encoder": True},
    "adapters": {"lora": {"rank": 16, "targets": "attention+ff+conv"}, "text_encoder": True},
    "micro_batches": {"gradient_accumulation_steps": 2, "ema_decay": 0.9, "max_grad_norm": 1.0},
    "frozen_target": {"prior": {"target": "frozen"}, "remat": "blocks"},
}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
@pytest.mark.parametrize("augmentation", VARIANTS)
def test_no_way_of_training_moves_rows(micro, sizes, augmentation):
    _, _, program = compile_on(micro, sizes, (16, 16), **VARIANTS[augmentation])
    assert set(kinds(program)) <= {"all-gather", "all-reduce", "reduce-scatter"}
    if sizes == (8, 1, 1):
        assert set(kinds(program)) == {"all-reduce"}
    gathered = [shape for kind, shape in exchanges(program) if kind == "all-gather"]
    assert not [shape for shape in gathered if len(shape) == 3]  # (rows, tokens, width)
    assert not [shape for shape in gathered if len(shape) == 4 and shape[1] > 3]  # (rows, height, width, channels)


@pytest.mark.slow
def test_channels_that_no_axis_divides_stay_whole(micro):
    config = dataclasses.replace(micro.denoiser_config, block_out_channels=(24, 56))
    odd = dataclasses.replace(
        micro, denoiser_config=config, denoiser=abstract_module(lambda rngs: UNet2DConditionModel(config, Layers(rngs)))
    )
    check_tensor(*compile_on(odd, (2, 2, 2)), 2 * PER_DEVICE)


PROGRAM = """
import dataclasses, json, sys
from jax.experimental import topologies
from jaxbooth.assets import DEMO_MODEL
from jaxbooth.models.layers import Layers
from jaxbooth.models.unet import UNet2DConditionModel
from jaxbooth.params import abstract_module
from jaxbooth.base.model import BaseModel
from jaxbooth.sharding import make_mesh
from tests.compiled import exchanges, kinds, lower_step

devices = topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:2x2", chips_per_host_bounds=(2, 2, 1), **json.loads(sys.argv[2])
).devices
base = BaseModel.read(DEMO_MODEL, "bfloat16")
config = dataclasses.replace(
    base.denoiser_config, block_out_channels=(16, 32), norm_num_groups=8,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
unet = abstract_module(lambda rngs: UNet2DConditionModel(config, Layers(rngs, base.dtype)))
mesh = make_mesh(*json.loads(sys.argv[1]), devices=devices)
slices = [[getattr(d, "slice_index", 0) for d in row.flat] for row in mesh.devices]
step = lower_step(dataclasses.replace(base, denoiser_config=config, denoiser=unet), mesh, (8, 8))
program = step.lowered.compile().as_text()
print(json.dumps({"kinds": kinds(program), "slices": slices}))
"""


def compile_for_tpu(sizes, **topology):
    """Compiles the step for a v5e in a process of its own, without a TPU."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    surroundings = {
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_LOG_DIR": "disabled",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(sizes), json.dumps(topology)],
        env=os.environ | surroundings, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_tpu_copies_of_the_model_exchange_gradients_alone():
    assert set(compile_for_tpu((4, 1, 1))["kinds"]) == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 2, 2)])
def test_tpu_pieces_are_gathered_and_the_batch_stays(sizes):
    assert set(compile_for_tpu(sizes)["kinds"]) <= {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.slow
def test_tpu_slices_are_copies_of_the_model():
    found = compile_for_tpu((2, 4, 1), num_slices=2)
    assert found["slices"] == [[0] * 4, [1] * 4]
    assert set(found["kinds"]) <= {"all-gather", "all-reduce", "reduce-scatter"}
