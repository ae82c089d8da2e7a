"""What a weight may be: finite floats, and a matrix where a 1x1 kernel is; anything else is refused when it is read."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.errors import UserError
from jaxbooth.models.layers import Layers
from jaxbooth.params import Params, abstract_module
from jaxbooth.sharding import param_shardings
from jaxbooth.storage.files import write_json
from jaxbooth.weights.diffusers_read import find_tensors, load_component, read_weight_map
from jaxbooth.weights.values import all_finite


class Pair(nnx.Module):
    """A convolution, a 1x1 convolution and a linear layer."""

    def __init__(self, layers: Layers):
        self.conv = layers.conv(2, 3)
        self.proj_in = layers.conv(2, 3, size=1)
        self.to_q = layers.linear(2, 3)


NETWORK = abstract_module(lambda rngs: Pair(Layers(rngs)))
STORED = {
    "conv.weight": np.arange(54, dtype=np.float32).reshape(3, 2, 3, 3), "conv.bias": np.ones(3, np.float32),
    "proj_in.weight": np.arange(6, dtype=np.float32).reshape(3, 2, 1, 1), "proj_in.bias": np.ones(3, np.float32),
    "to_q.weight": np.arange(6, dtype=np.float32).reshape(3, 2), "to_q.bias": np.ones(3, np.float32),
}  # fmt: skip


def load(folder: Path, mesh, **changes: np.ndarray) -> Params:
    save_file(STORED | changes, folder / "model.safetensors")
    return load_component(folder, NETWORK, param_shardings(mesh), np.float32)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_floats_of_16_bits_and_more_are_read(tmp_path, mesh, dtype):
    params = load(tmp_path, mesh, **{"to_q.weight": STORED["to_q.weight"].astype(dtype)})
    np.testing.assert_array_equal(params["to_q.kernel"], [[0, 2, 4], [1, 3, 5]])


@pytest.mark.parametrize(
    ("dtype", "code"),
    [(np.int8, "I8"), (np.uint8, "U8"), (np.int64, "I64"), (np.bool_, "BOOL"), (ml_dtypes.float8_e4m3fn, "F8_E4M3")],
)
@pytest.mark.parametrize("name", ["to_q.weight", "conv.bias"])
def test_other_weights_are_refused_with_file_and_tensor(tmp_path, mesh, dtype, code, name):
    with pytest.raises(UserError, match=rf"model\.safetensors: '{name}' is {code}; weights must be float16"):
        load(tmp_path, mesh, **{name: STORED[name].astype(dtype)})


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_value_that_is_not_finite_is_refused_with_file_and_tensor(tmp_path, mesh, dtype, value):
    damaged = STORED["conv.weight"].astype(dtype)
    damaged[2, 1, 2, 2] = value
    with pytest.raises(UserError, match=r"model\.safetensors: 'conv\.weight' holds NaN or infinite values"):
        load(tmp_path, mesh, **{"conv.weight": damaged})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_largest_and_the_smallest_values_are_finite(dtype):
    info = ml_dtypes.finfo(dtype)
    assert all_finite(np.array([info.max, info.min, info.tiny, info.smallest_subnormal, 0.0, -0.0], dtype))


def test_a_matrix_and_a_1x1_kernel_are_the_same(tmp_path, mesh):
    expected = load(tmp_path, mesh)
    swapped = {"proj_in.weight": STORED["proj_in.weight"][:, :, 0, 0],
               "to_q.weight": STORED["to_q.weight"][:, :, None, None]}  # fmt: skip
    found = load(tmp_path, mesh, **swapped)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("to_q.weight", (2, 3)), ("to_q.weight", (6,)), ("to_q.weight", (3, 2, 2, 1)), ("to_q.weight", (3, 1, 2)),
        ("proj_in.weight", (2, 3)), ("conv.weight", (3, 2)), ("conv.weight", (3, 18)), ("to_q.bias", (3, 1)),
    ],
)  # fmt: skip
def test_another_shape_is_named_before_anything_is_allocated(tmp_path, name, shape):
    save_file(STORED | {name: np.zeros(shape, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"'{name}' has shape") as raised:
        find_tensors(tmp_path, NETWORK)
    assert f"has shape {shape}, but the configuration asks for" in str(raised.value)


def test_a_tensor_under_two_names_is_refused(tmp_path, mesh):
    with pytest.raises(UserError, match=r"holds the tensor 'to_q\.weight' twice"):
        load(tmp_path, mesh, **{"text_model.to_q.weight": STORED["to_q.weight"]})


@pytest.mark.parametrize(
    "index", [{}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 3}},
              {"weight_map": "model.safetensors"}]
)  # fmt: skip
def test_an_index_without_a_map_of_files_is_named(tmp_path, index):
    write_json(tmp_path / "model.safetensors.index.json", index)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json (has no weight_map|names 3)"):
        read_weight_map(tmp_path / "model.safetensors.index.json")


def test_the_demo_models_weights_are_finite_floats():
    for file in DEMO_MODEL.rglob("*.safetensors"):
        assert all(all_finite(value) for value in load_file(file).values()), file
