"""Attention with padded keys and with fewer key heads than query heads, by every kernel, against torch."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax._src.cudnn import fused_attention_stablehlo
from jax.sharding import NamedSharding, PartitionSpec

from jaxbooth.models.attention import LONG_SEQUENCE, attention
from jaxbooth.models.attention_kernels import chunked_attention, tpu_splash_attention, xla_attention
from jaxbooth.sharding import BATCH_AXES, make_mesh, mesh_context
from tests.test_attention_mesh import CHUNKED, COLLECTIVES

F32 = jnp.float32
FORMS = {
    "xla": xla_attention,
    "chunked": functools.partial(chunked_attention, longest=16),
    "splash": functools.partial(tpu_splash_attention, interpret=True),
}


def inputs(rng, length, heads, kv_heads, width=8, batch=3):
    """Query, key and value."""
    return [jnp.asarray(rng.normal(size=(batch, length, count, width)), F32) for count in (heads, kv_heads, kv_heads)]


def of_torch(arrays, cotangent, lengths, is_causal=False):
    """Output and gradients of torch's attention with a mask, in float64."""
    leaves = [torch.tensor(np.asarray(x, np.float64), requires_grad=True) for x in arrays]
    length, source_length = arrays[0].shape[1], arrays[1].shape[1]
    mask = torch.arange(source_length)[None, None, :] < torch.tensor(lengths)[:, None, None]
    if is_causal:
        mask = mask & torch.tril(torch.ones(length, source_length, dtype=torch.bool))
    out = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in leaves), attn_mask=mask[:, None].expand(-1, 1, length, -1), enable_gqa=True
    ).transpose(1, 2)
    out.backward(torch.tensor(np.asarray(cotangent, np.float64)))
    return [out.detach().numpy(), *(leaf.grad.numpy() for leaf in leaves)]


def output_and_gradients(form, arrays, cotangent, lengths):
    @jax.jit
    def run(*arrays):
        out, pull = jax.vjp(lambda *qkv: form(*qkv, lengths=jnp.asarray(lengths, jnp.int32)), *arrays)
        return out, *pull(cotangent)

    return run(*arrays)


def assert_close(found, expected, rtol=2e-6):
    """Compares each array with the largest value in it: a lone key's gradient is a sum over all queries."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("length", "heads", "kv_heads"), [(512, 2, 2), (520, 4, 2), (520, 3, 1)])
def test_padded_keys_are_not_seen_and_have_no_gradient(rng, form, length, heads, kv_heads):
    arrays = inputs(rng, length, heads, kv_heads)
    cotangent, lengths = jnp.cos(arrays[0]), [length, 37, 1]
    found = output_and_gradients(FORMS[form], arrays, cotangent, lengths)
    assert_close(found, of_torch(arrays, cotangent, lengths))
    for grad in found[2:]:
        assert not np.any(grad[1, 37:])
        assert not np.any(grad[2, 1:])


@pytest.mark.parametrize("form", ["chunked", "splash"])
def test_fewer_key_heads_need_no_lengths(rng, form):
    arrays = inputs(rng, 512, 4, 2)
    cotangent = jnp.cos(arrays[0])
    out, pull = jax.vjp(FORMS[form], *arrays)
    assert_close((out, *pull(cotangent)), of_torch(arrays, cotangent, [512] * 3))


def test_causal_rows_see_no_padding_either(rng):
    arrays = inputs(rng, 24, 4, 2)
    cotangent, lengths = jnp.cos(arrays[0]), [24, 9, 1]
    found = output_and_gradients(functools.partial(attention, is_causal=True), arrays, cotangent, lengths)
    assert_close(found, of_torch(arrays, cotangent, lengths, is_causal=True))


def test_a_long_padded_sequence_goes_in_chunks_on_a_cpu(rng):
    arrays = inputs(rng, LONG_SEQUENCE, 2, 1, batch=1)
    cotangent, lengths = jnp.cos(arrays[0]), [100]
    found = output_and_gradients(attention, arrays, cotangent, lengths)
    assert_close(found, of_torch(arrays, cotangent, lengths))


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_eight_devices_take_their_rows_lengths(rng, mesh, kv_heads):
    arrays = inputs(rng, 64, 2, kv_heads, batch=4)
    lengths = jnp.asarray([64, 50, 17, 1], jnp.int32)

    def on(mesh):
        def run(*values):
            with mesh_context(mesh):
                out, pull = jax.vjp(lambda *qkv: CHUNKED(*qkv, values[3]), *values[:3])
            return out, *pull(jnp.cos(out))

        return jax.jit(run)

    many = make_mesh(2, 2, 2)
    heads = "tensor" if kv_heads == 2 else None
    specs = [PartitionSpec(BATCH_AXES, None, heads)] * 3 + [PartitionSpec(BATCH_AXES)]
    placed = [
        jax.device_put(value, NamedSharding(many, spec)) for value, spec in zip((*arrays, lengths), specs, strict=True)
    ]
    program = on(many).lower(*placed).compile()
    if heads:  # otherwise both halves of `tensor` compute the same
        assert not [word for word in COLLECTIVES if f"{word}(" in program.as_text()]
    assert_close(program(*placed), on(mesh)(*arrays, lengths))


def lowered(platform):
    """The names of the kernels in the program of a padded layer's gradient with half as many key heads."""
    shapes = [jax.ShapeDtypeStruct((2, 4096, heads, 40), jnp.bfloat16) for heads in (4, 2, 2)]
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
    layer = jax.checkpoint(lambda *qkv, lengths: attention(*qkv, lengths=lengths))
    loss = jax.grad(lambda *qkv, lengths: jnp.sum(layer(*qkv, lengths=lengths).astype(F32)), argnums=(0, 1, 2))
    text = jax.jit(loss).trace(*shapes, lengths=lengths).lower(lowering_platforms=(platform,)).as_text()
    return set(re.findall(r"custom_call @([\w$]+)", text)), text


def test_a_padded_program_for_tpus_takes_the_tpu_kernel():
    kernels, text = lowered("tpu")
    assert kernels == {"tpu_custom_call"}
    assert "4096x4096" not in text


def test_a_padded_program_for_cuda_takes_cudnn(monkeypatch):
    monkeypatch.setattr(
        fused_attention_stablehlo, "cuda_versions", SimpleNamespace(cudnn_get_version=lambda: 91000)
    )  # as in test_attention.py
    kernels, text = lowered("cuda")
    assert kernels == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert "PADDING" in text
    assert "4096x4096xf32" not in text
