"""The partition rule."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

from jaxbooth.errors import UserError
from jaxbooth.sharding import make_mesh, partition, row_shards, shardings_like


def test_data_takes_what_the_other_axes_leave():
    assert dict(make_mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_axes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"--mesh.data 3 x --mesh.fsdp 1 x --mesh.tensor 1 .* 8 device"):
        make_mesh(data=3)


def test_fsdp_takes_the_largest_divisible_dimension():
    mesh = make_mesh(data=1, fsdp=8)
    assert partition("a.kernel", (3, 3, 320, 640), mesh) == P(None, None, None, "fsdp")
    assert partition("a.kernel", (3, 3, 641, 320), mesh) == P(None, None, None, "fsdp")


def test_small_parameters_are_replicated():
    assert partition("a.bias", (320,), make_mesh(data=1, fsdp=8)) == P(None)


def test_tensor_splits_outputs_going_in_and_inputs_coming_out():
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    assert partition("b.attn1.to_q.kernel", (320, 320), mesh) == P("fsdp", "tensor")
    assert partition("b.attn1.to_out.0.kernel", (320, 320), mesh) == P("tensor", "fsdp")


def test_rows_go_over_data_and_fsdp():
    assert row_shards(make_mesh(data=2, fsdp=4)) == 8


def test_optimizer_moments_live_where_their_parameter_does():
    mesh = make_mesh(data=1, fsdp=8)
    leaf = jax.ShapeDtypeStruct((640, 320), "float32")
    found = shardings_like({"mu": {"unet.a.kernel": leaf}, "count": jax.ShapeDtypeStruct((), "int32")}, mesh)
    assert found["mu"]["unet.a.kernel"].spec == P("fsdp", None)
    assert found["count"].spec == P()
