"""Every form of attention computes the same; the platform that a program is compiled for decides which it takes."""

import functools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from jaxbooth.models.attention import attention, gated, select_kernel
from jaxbooth.models.attention_kernels import (
    chunked_attention,
    has_cudnn,
    splash_blocks,
    tpu_splash_attention,
    xla_attention,
)

F32, BF16 = jnp.float32, jnp.bfloat16


def inputs(rng, length=64, heads=2, width=8, batch=1):
    return [jnp.asarray(rng.normal(size=(batch, length, heads, width)), F32) for _ in range(3)]


def value_and_gradients(form, arrays):
    @jax.jit
    def run(*arrays):
        value, pull = jax.vjp(form, *arrays)
        return value, *pull(jnp.sin(jnp.arange(value.size, dtype=F32)).reshape(value.shape).astype(value.dtype))

    return run(*arrays)


def assert_equal_to_plain(form, arrays, atol):
    found, expected = (value_and_gradients(f, arrays) for f in (form, xla_attention))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("length", [64, 60])
def test_query_chunks_equal_the_plain_form(rng, length):
    assert_equal_to_plain(functools.partial(chunked_attention, longest=16), inputs(rng, length), atol=2e-6)


def test_chunks_are_the_largest_that_divide_the_length(rng):
    program = jax.jit(functools.partial(chunked_attention, longest=16)).lower(*inputs(rng, 60, heads=3)).as_text()
    assert "1x15x3x8" in program


@pytest.mark.parametrize("width", [40, 64, 80, 160])
def test_the_tpu_kernel_equals_the_plain_form(rng, width):
    assert_equal_to_plain(
        functools.partial(tpu_splash_attention, interpret=True), inputs(rng, 512, 1, width), atol=1e-5
    )


@pytest.mark.parametrize("length", [520, 1000])
def test_the_tpu_kernel_ignores_what_fills_its_last_block(rng, length):
    assert_equal_to_plain(
        functools.partial(tpu_splash_attention, interpret=True), inputs(rng, length, 1, 40, batch=2), atol=1e-5
    )


def test_the_tpu_kernel_is_as_exact_in_bfloat16_as_the_plain_form(rng):
    exact = inputs(rng, 512, 2, 40)
    expected = value_and_gradients(xla_attention, exact)
    rounded = [x.astype(BF16) for x in exact]

    def errors(form):
        found = value_and_gradients(form, rounded)
        return [float(jnp.std(a.astype(F32) - b)) for a, b in zip(found, expected, strict=True)]

    kernel, plain = errors(functools.partial(tpu_splash_attention, interpret=True)), errors(xla_attention)
    assert all(ours < 1.2 * theirs for ours, theirs in zip(kernel, plain, strict=True)), (kernel, plain)


def test_one_backward_kernel_computes_all_gradients_where_its_blocks_have_room_on_every_tpu():
    assert splash_blocks(4096, 128).use_fused_bwd_kernel
    assert not splash_blocks(4608, 128).use_fused_bwd_kernel
    assert not splash_blocks(4096, 160).use_fused_bwd_kernel  # tested for equality above, as are narrower heads


@pytest.mark.parametrize(
    ("platform", "length", "source", "width", "dtype", "causal", "form"),
    [
        ("tpu", 4096, 4096, 40, BF16, False, "splash"),  # SD 1.5 at 512 px
        ("tpu", 4032, 4032, 40, BF16, False, "splash"),  # its bucket of 576 x 448
        ("tpu", 4096, 4096, 64, BF16, False, "splash"),  # SDXL at 1024 px
        ("tpu", 1024, 1024, 80, BF16, False, "xla"),
        ("tpu", 4096, 77, 40, BF16, False, "xla"),  # text
        ("tpu", 77, 77, 64, BF16, True, "xla"),
        ("tpu", 4096, 4096, 64, BF16, True, "xla"),
        ("tpu", 4096, 4096, 40, F32, False, "chunked"),
        ("tpu", 16384, 16384, 512, F32, False, "chunked"),  # the VAE at 1024 px
        ("cuda", 4096, 4096, 40, BF16, False, "cudnn"),
        ("cuda", 4096, 4096, 128, BF16, False, "cudnn"),
        ("cuda", 4096, 4096, 136, BF16, False, "chunked"),
        ("cuda", 4096, 4096, 36, BF16, False, "chunked"),
        ("cuda", 4096, 4096, 40, F32, False, "chunked"),
        ("cuda", 1024, 1024, 80, BF16, False, "cudnn"),
        ("cuda", 1024, 77, 80, BF16, False, "cudnn"),  # text
        ("cuda", 256, 77, 80, BF16, False, "xla"),
        ("cuda", 64, 64, 80, BF16, False, "xla"),
        ("rocm", 4096, 4096, 40, BF16, False, "chunked"),
        ("cpu", 4096, 4096, 40, BF16, False, "chunked"),
        ("cpu", 1024, 1024, 40, BF16, False, "xla"),
    ],
)
def test_the_rule(platform, length, source, width, dtype, causal, form):
    assert select_kernel(platform, length, source, width, dtype, causal) == form


def lowered(platform, dtype=BF16, width=40, source=4096):
    """The names of the kernels in the program of a checkpointed layer's gradient, and its text."""
    shape, of_source = (jax.ShapeDtypeStruct((2, length, 2, width), dtype) for length in (4096, source))
    layer = jax.checkpoint(lambda *qkv: attention(*qkv))  # a function of its own: JAX keeps what it traced of others
    loss = jax.grad(lambda *qkv: jnp.sum(layer(*qkv).astype(F32)), argnums=(0, 1, 2))
    text = jax.jit(loss).trace(shape, of_source, of_source).lower(lowering_platforms=(platform,)).as_text()
    return set(re.findall(r"custom_call @([\w$]+)", text)), text


def test_a_program_for_tpus_takes_the_tpu_kernel_although_no_tpu_is_here():
    kernels, text = lowered("tpu")
    assert kernels == {"tpu_custom_call"}
    assert "4096x4096" not in text


@pytest.mark.parametrize("source", [4096, 77])
def test_a_program_for_cuda_takes_cudnn_where_cudnn_is_installed(monkeypatch, source):
    # JAX asks for cuDNN's version while it traces, and reads nothing else of the library before the program runs.
    version = SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", version)
    kernels, text = lowered("cuda", source=source)
    assert kernels == {"__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"}
    assert f"4096x{source}xf32" not in text


@pytest.mark.skipif(has_cudnn(), reason="cuDNN is installed here")
def test_a_program_for_cuda_takes_query_chunks_where_cudnn_is_missing():
    kernels, text = lowered("cuda")
    assert kernels == set()
    assert "512x1x4096xf32" in text


@pytest.mark.parametrize(("platform", "dtype", "width"), [("cpu", BF16, 40), ("tpu", F32, 512)])
def test_other_long_programs_never_build_all_scores(platform, dtype, width):
    kernels, text = lowered(platform, dtype, width)
    assert kernels == set()
    assert "4096x4096" not in text
    assert "512x1x4096xf32" in text


def test_cross_attention_and_short_sequences_take_the_plain_form():
    query, text = (jax.ShapeDtypeStruct((1, length, 1, 8), F32) for length in (4096, 77))
    assert "while" not in jax.jit(attention).lower(query, text, text).as_text()
    assert "while" not in jax.jit(attention).lower(text, text, text).as_text()


def test_a_bfloat16_gate_keeps_its_two_inputs_alone():
    x = jnp.ones((4, 32), jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(gated, x, 2 * x)[1])
    assert [leaf.size for leaf in kept] == [x.size, x.size]
