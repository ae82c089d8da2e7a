"""Attention in pieces equals attention in one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.models.attention import attention
from jaxbooth.models.attention_forms import query_chunked_attention


def inputs(rng):
    return (jnp.asarray(rng.normal(size=(2, 64, 4, 8)), jnp.float32) for _ in range(3))


def test_chunked_attention_equals_the_plain_form(rng):
    q, k, v = inputs(rng)
    np.testing.assert_allclose(query_chunked_attention(q, k, v, 16), attention(q, k, v), atol=1e-6)


def test_chunked_gradients_equal_the_plain_form(rng):
    q, k, v = inputs(rng)

    def loss(function):
        return jax.grad(lambda *qkv: jnp.sum(jnp.sin(function(*qkv))), argnums=(0, 1, 2))(q, k, v)

    for found, expected in zip(loss(lambda *x: query_chunked_attention(*x, 16)), loss(attention), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_a_chunk_that_does_not_divide_is_refused(rng):
    with pytest.raises(ValueError, match="64 is not a multiple of the chunk 48"):
        query_chunked_attention(*inputs(rng), 48)


def test_long_self_attention_never_builds_the_full_score_matrix():
    shape = jax.ShapeDtypeStruct((1, 4096, 1, 8), jnp.float32)
    program = jax.jit(attention).lower(shape, shape, shape).as_text()
    assert "4096x4096" not in program
    assert "512x4096" in program
