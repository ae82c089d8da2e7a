"""What the analysis of a jaxpr finds: FLOPs by formula, what is stored, which branch a platform takes."""

import jax
import jax.numpy as jnp
import pytest

from jaxbooth.models.attention import attention
from jaxbooth.models.conv import conv2d
from jaxbooth.plan.flops import CONV, DOT, ELEMENTS, KERNEL, meeting_pairs
from jaxbooth.plan.jaxpr_memory import JaxprAnalysis
from jaxbooth.plan.jaxpr_values import live_bytes

BATCH, LENGTH, HEADS, WIDTH = 2, 4096, 4, 40


def analyzed(function, *shapes, platform="tpu", dtype=jnp.bfloat16):
    """Analyzes a function of arrays that all grow with the batch."""
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    jaxpr = jax.make_jaxpr(function)(*arrays)
    analysis = JaxprAnalysis(platform)
    results = analysis.run(jaxpr.jaxpr, [analysis.argument(array, per_example=True) for array in arrays])
    analysis.read(results)
    return analysis


def peak(analysis):
    """Most bytes that are alive at a time."""
    return live_bytes(analysis.buffers, analysis.time).max()


def test_a_matrix_product_takes_two_flops_for_each_product():
    analysis = analyzed(lambda x, w: x @ w, (5, 7), (7, 11))
    assert analysis.flops[DOT].per_example == 2 * 5 * 7 * 11
    assert peak(analysis) == 2 * 5 * 11


def test_a_convolution_counts_no_padding():
    analysis = analyzed(lambda x, w: conv2d(x, w, 1, 1), (2, 8, 8, 3), (3, 3, 3, 5))
    inside = 3 * 8 - 2  # of each dimension's 24 pairs of a position and a tap, two fall on padding
    assert analysis.flops[CONV].per_example == 2 * 2 * inside**2 * 3 * 5


@pytest.mark.parametrize("platform", ["tpu", "cpu"])
def test_the_gradients_of_a_convolution_take_twice_its_flops(platform):
    def gradients(x, w):
        return jax.grad(lambda x, w: conv2d(x, w, 1, 1).sum(), (0, 1))(x, w)

    shapes = (2, 8, 8, 4), (3, 3, 4, 4)
    forward = analyzed(lambda x, w: conv2d(x, w, 1, 1), *shapes)
    assert (
        analyzed(gradients, *shapes, platform=platform).flops[CONV].per_example == 2 * forward.flops[CONV].per_example
    )


def test_a_strided_convolution_meets_every_other_position():
    assert meeting_pairs(size=8, window=3, out=4, stride=2, low=1, dilation=1, spread=1) == 4 * 3 - 1
    # Its input's gradient: the zeros between the elements of what comes back do not count.
    assert meeting_pairs(size=4, window=3, out=8, stride=1, low=1, dilation=2, spread=1) == 4 * 3 - 1


def test_loops_count_every_turn():
    analysis = analyzed(lambda x, w: jax.lax.fori_loop(0, 6, lambda _, y: y @ w, x), (5, 7), (7, 7))
    assert analysis.flops[DOT].per_example == 6 * 2 * 5 * 7 * 7


def test_element_wise_operations_store_nothing_between_products():
    plain = analyzed(lambda x, w: (x @ w) @ w, (64, 64), (64, 64))
    fused = analyzed(lambda x, w: jnp.tanh(jnp.exp(x @ w) * 2) @ w, (64, 64), (64, 64))
    assert peak(fused) == peak(plain) == 2 * 2 * 64 * 64
    assert fused.flops[ELEMENTS].per_example == 3 * 64 * 64


def test_a_cpu_stores_what_its_products_read():
    def stored(platform):
        analysis = analyzed(lambda x, w: jnp.tanh(x @ w) @ w, (64, 64), (64, 64), platform=platform)
        return sum(buffer.size for buffer in analysis.buffers)

    assert (stored("tpu"), stored("cpu")) == (2 * 2 * 64 * 64, 3 * 2 * 64 * 64)


def test_a_sum_takes_the_place_of_what_nobody_else_reads():
    analysis = analyzed(lambda x, w: ((x @ w) + x) @ w, (64, 64), (64, 64))
    assert peak(analysis) == 2 * 2 * 64 * 64  # the sum and the last product


def test_a_result_that_nobody_asks_for_is_not_computed():
    assert analyzed(lambda x, w: (x @ w, x)[1], (5, 7), (7, 11)).flops[DOT].per_example == 0


def attended(platform):
    """Analyzes attention over a long sequence, and its gradients."""
    shape = (BATCH, LENGTH, HEADS, WIDTH)

    def gradients(query, key, value):
        return jax.grad(lambda *qkv: attention(*qkv).astype(jnp.float32).sum(), (0, 1, 2))(query, key, value)

    return analyzed(gradients, shape, shape, shape, platform=platform)


def test_long_attention_stores_no_scores_on_a_tpu_and_its_kernels_flops_count():
    analysis = attended("tpu")
    scores = 4 * BATCH * HEADS * LENGTH * LENGTH
    assert peak(analysis) < scores / 4
    one = 2 * BATCH * HEADS * LENGTH * LENGTH * WIDTH  # of one product of the forward pass
    # Two products forward; backward one for each of the scores, their gradient and those of query, key and value.
    assert analysis.flops[KERNEL].per_example == 7 * one


def test_long_attention_elsewhere_takes_a_chunk_of_queries_at_a_time():
    analysis = attended("cpu")
    assert analysis.flops[KERNEL].per_example == 0
    one = 2 * BATCH * HEADS * LENGTH * LENGTH * WIDTH
    assert analysis.flops[DOT].per_example == 5 * one  # the scores again, and four backward


def test_a_gpus_attention_is_estimated_without_scores_where_cudnn_is_missing():
    assert peak(attended("cuda")) < 4 * BATCH * HEADS * LENGTH * LENGTH / 4
