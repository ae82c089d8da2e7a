"""Long attention on several devices: each works on its own rows and heads, and nothing moves between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxbooth.models.attention import LONG_SEQUENCE, attention
from jaxbooth.models.attention_kernels import chunked_attention, tpu_splash_attention, xla_attention
from jaxbooth.sharding import BATCH_AXES, make_mesh, mesh_context, replicated, shard_map_heads

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
CHUNKED = functools.partial(shard_map_heads, functools.partial(chunked_attention, longest=16))
KERNEL = functools.partial(shard_map_heads, functools.partial(tpu_splash_attention, interpret=True))


def layers_on(mesh, form):
    """Returns a function of query, key and value: two layers in a scan, checkpointed, and their gradients."""

    def layers(query, key, value):
        def body(x, _):
            return x + jax.checkpoint(form)(x, key, value), None

        with mesh_context(mesh):
            return jax.lax.scan(body, query, None, length=2)[0]

    def run(*arrays):
        out, pull = jax.vjp(layers, *arrays)
        return out, *pull(jnp.cos(out))

    return jax.jit(run)


def arrays(rng, batch, length, heads, width=8):
    return [jnp.asarray(rng.normal(size=(batch, length, heads, width)), jnp.float32) for _ in range(3)]


def by_rows_and_heads(mesh, values):
    return jax.device_put(values, NamedSharding(mesh, PartitionSpec(BATCH_AXES, None, "tensor")))


def assert_close(found, expected, atol):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize(
    ("sizes", "form", "length"),
    [
        ((8, 1, 1), CHUNKED, 64),
        ((2, 4, 1), CHUNKED, 64),
        ((2, 2, 2), CHUNKED, 64),
        pytest.param((2, 2, 2), attention, LONG_SEQUENCE, marks=pytest.mark.slow),
        ((2, 2, 2), KERNEL, 512),
    ],
)
def test_eight_devices_compute_what_one_does_and_exchange_nothing(rng, mesh, sizes, form, length):
    values = arrays(rng, batch=8, length=length, heads=2)
    expected = layers_on(mesh, xla_attention)(*values)
    many = make_mesh(*sizes)
    placed = by_rows_and_heads(many, values)
    program = layers_on(many, form).lower(*placed).compile()
    assert not [word for word in COLLECTIVES if f"{word}(" in program.as_text()]
    assert_close(program(*placed), expected, atol=1e-5)


@pytest.mark.parametrize(("batch", "heads"), [(8, 3), (3, 2), (1, 1)])
def test_rows_and_heads_that_the_mesh_does_not_divide_are_still_right(rng, mesh, batch, heads):
    values = arrays(rng, batch, length=64, heads=heads)
    expected = layers_on(mesh, xla_attention)(*values)
    many = make_mesh(2, 2, 2)
    found = layers_on(many, CHUNKED)(*jax.device_put(values, replicated(many)))
    assert_close(found, expected, atol=1e-5)


def lower_for_tpu(sizes, named):
    """Lowers a layer on a mesh; `named` tells it which mesh that is."""
    many = make_mesh(*sizes)
    shape = jax.ShapeDtypeStruct(
        (8, 4096, 2, 40), jnp.bfloat16, sharding=NamedSharding(many, PartitionSpec(BATCH_AXES))
    )

    def layer(*qkv):
        if not named:
            return attention(*qkv)
        with mesh_context(many):
            return attention(*qkv)

    return jax.jit(layer).trace(shape, shape, shape).lower(lowering_platforms=("tpu",)).as_text()


def test_the_tpu_kernel_needs_to_know_the_mesh():
    assert "tpu_custom_call" in lower_for_tpu((2, 2, 2), named=True)
    with pytest.raises(NotImplementedError, match="cannot be automatically partitioned"):
        lower_for_tpu((2, 2, 2), named=False)
