"""The programs that Z-Image's transformer is compiled from: how large they are, and what they compute again and sum."""

from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from jaxbooth.models.remat import REMATS
from jaxbooth.params import cast_matrices
from jaxbooth.sharding import mesh_context
from tests.low_precision import bfloat16_sums
from tests.test_remat import equations
from tests.zimage import TINY, inputs, network

RAW = TINY | {"dim": 64, "n_heads": 4}


@pytest.fixture
def loss_of(rng):
    """Returns a function from a network to its loss, whose arguments are parameters and inputs."""
    arrays = inputs(rng, RAW, 8, 32, lengths=(7, 40, 64, 1), longest=64)

    def make(definition, mesh, remat="none"):
        def loss(params, *arrays):
            with mesh_context(mesh):
                return jnp.sum(definition.bind(cast_matrices(params, jnp.bfloat16))(*arrays, remat=remat))

        return loss

    return make, arrays


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_depth_adds_calls_and_no_functions(loss_of, mesh, remat):
    make, arrays = loss_of

    def program(depth):
        definition = network(RAW | {"n_layers": depth})
        return jax.jit(jax.grad(make(definition, mesh, remat))).lower(definition.shapes, *arrays).as_text()

    shallow, deep = program(2), program(4)
    assert deep.count("func.func") == shallow.count("func.func")
    assert deep.count("call @") > shallow.count("call @")


def test_dots_computes_no_product_again_and_blocks_does(loss_of, mesh):
    make, arrays = loss_of
    definition = network(RAW)

    def products(remat):
        traced = jax.make_jaxpr(jax.grad(make(definition, mesh, remat)))(definition.shapes, *arrays)
        return Counter(equation.primitive.name for equation in equations(traced.jaxpr))["dot_general"]

    counts = {remat: products(remat) for remat in REMATS}
    assert counts["dots"] == counts["none"] < counts["attention"] == counts["blocks"]


def test_no_more_than_a_few_numbers_are_added_up_in_bfloat16(loss_of, mesh):
    make, arrays = loss_of
    definition = network(RAW, jnp.bfloat16)
    lowered = jax.jit(jax.grad(make(definition, mesh))).lower(definition.shapes, *arrays)
    assert all(count <= 64 for count in bfloat16_sums(lowered))
