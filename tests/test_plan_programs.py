"""What is read out of compiled and traced programs: collectives, and the FLOPs that XLA does not count."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxbooth.models.attention import attention
from jaxbooth.plan.compile import temp_bytes
from jaxbooth.plan.hardware import find_topology
from jaxbooth.plan.hlo import collectives
from jaxbooth.plan.uncounted_flops import uncounted_flops
from jaxbooth.sharding import make_mesh, mesh_context

TPU_TEXT = """
HloModule jit_run, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (p: bf16[64,8]) -> bf16[16,8] {
  %p = bf16[64,8]{1,0:T(8,128)} parameter(0)
  %whole = bf16[64,8]{1,0:T(8,128)} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %part = bf16[16,8]{1,0:T(8,128)} dynamic-slice(%whole, %zero), dynamic_slice_sizes={16,8}
}

%micro_batch (carry: (s32[], f32[8])) -> (s32[], f32[8]) {
  %gather = (bf16[4,8]{1,0:T(8,128)}, bf16[16,8]{1,0:T(8,128)S(1)}) all-gather-start(%x), dimensions={0}
  %done = bf16[16,8]{1,0:T(8,128)S(1)} all-gather-done(%gather)
  %fusion.2 = bf16[16,8]{1,0:T(8,128)} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
  %piece = bf16[2,8]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%first_piece
  %other = bf16[2,8]{1,0:T(8,128)} fusion(%x), kind=kCustom, calls=%second_piece
  %next_block = bf16[2,8]{1,0:T(8,128)} fusion(%z), kind=kCustom, calls=%piece_of_another
}

%first_piece (p.1: bf16[2,8]) -> bf16[8,8] {
  ROOT %whole.1 = bf16[8,8]{1,0:T(8,128)} all-gather(%p.1), channel_id=7, dimensions={0}, frontend_attributes={chain_id="1"}
}

%second_piece (p.2: bf16[2,8]) -> bf16[8,8] {
  ROOT %whole.2 = bf16[8,8]{1,0:T(8,128)} all-gather(%p.2), channel_id=7, dimensions={0}, frontend_attributes={chain_id="1"}
}

%piece_of_another (p.3: bf16[2,8]) -> bf16[8,8] {
  ROOT %whole.3 = bf16[8,8]{1,0:T(8,128)} all-gather(%p.3), channel_id=7, dimensions={0}, frontend_attributes={chain_id="2"}
}

ENTRY %main (state: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]{0}) while(%init), condition=%more, body=%micro_batch, backend_config={"known_trip_count":{"n":"3"}}
  %both = (f32[8]{0}, pred[5]{0}) all-reduce(%u, %v), replica_groups=[1,4]<=[4], to_apply=%add
}
"""  # noqa: E501


def test_collectives_of_a_tpu_program_are_counted_as_often_as_their_loop_turns_and_their_pieces_once():
    assert collectives(TPU_TEXT) == {
        "all-gather": {"count": 3 * (1 + 2), "bytes": 3 * 16 * 8 * 2 + 3 * 2 * 8 * 8 * 2},
        "all-reduce": {"count": 1, "bytes": 8 * 4 + 5},
        "reduce-scatter": {"count": 3, "bytes": 3 * 16 * 8 * 2},
    }


def test_a_sum_over_eight_devices_is_one_all_reduce_of_its_result():
    mesh = make_mesh()
    rows = jax.ShapeDtypeStruct((64, 128), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    text = jax.jit(lambda x: x.sum(0)).lower(rows).compile().as_text()
    assert collectives(text) == {"all-reduce": {"count": 1, "bytes": 128 * 4}}


def test_a_program_of_one_device_has_no_collectives():
    assert collectives(jax.jit(jnp.sin).lower(jnp.ones(3)).compile().as_text()) == {}


def test_xla_counts_one_pass_through_a_loop():
    def run(x):
        return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, None, length=8)[0]

    traced = jax.jit(run).trace(jax.ShapeDtypeStruct((64, 64), jnp.float32))
    product = 2 * 64**3
    assert uncounted_flops(traced.jaxpr, "cpu", 1) == 7 * product
    assert uncounted_flops(traced.jaxpr, "cpu", 4) == 7 * product / 4
    assert traced.lower().compile().cost_analysis()["flops"] == pytest.approx(product, rel=1e-3)


def test_a_loop_whose_length_is_data_is_counted_with_the_given_trip_count():
    def run(x, length):
        return jax.lax.fori_loop(0, length, lambda _, carry: carry @ carry, x)

    traced = jax.jit(run).trace(jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))
    assert uncounted_flops(traced.jaxpr, "cpu", 1) == 0
    assert uncounted_flops(traced.jaxpr, "cpu", 1, unknown_trip_count=20) == pytest.approx(19 * 2 * 64**3, rel=1e-3)


def attend(query):
    with mesh_context(make_mesh(devices=jax.devices()[:1])):
        return jax.value_and_grad(lambda q: attention(q, q, q).astype(jnp.float32).sum())(query)


@pytest.mark.parametrize(
    ("length", "products"),
    [
        (2048, 2 + 5),  # forward; backward one product for each of the scores, their gradient and three results
        (8192, 2 + 3 + 4),  # backward for queries, and for keys and values: the scores and their gradient in both
    ],
)
def test_xla_does_not_count_the_attention_kernels_of_a_tpu(length, products):
    batch, heads, width = 2, 3, 64
    traced = jax.jit(attend).trace(jax.ShapeDtypeStruct((batch, length, heads, width), jnp.bfloat16))
    assert uncounted_flops(traced.jaxpr, "tpu", 1) == products * 2 * batch * heads * length**2 * width


def test_xla_counts_the_first_chunk_of_queries_elsewhere():
    batch, length, heads, width = 2, 2048, 3, 64
    traced = jax.jit(attend).trace(jax.ShapeDtypeStruct((batch, length, heads, width), jnp.bfloat16))
    chunked = uncounted_flops(traced.jaxpr, "cpu", 1)
    # Forward 2 products, and 1 again in the backward pass for the scores, which has 4 of its own; 3 of 4 chunks.
    products = 7 * 2 * batch * heads * length**2 * width * 3 / 4
    assert products < chunked < 1.1 * products  # the rest is the softmax
    assert uncounted_flops(traced.jaxpr, "cuda", 1) == pytest.approx(chunked * 4 / 3, rel=1e-3)


def test_gaps_between_a_tpus_temporaries_count_once():
    """As libtpu 0.0.42 reports klein with three blocks and nf4, and the highest offset that it assigns."""
    reported = SimpleNamespace(
        temp_size_in_bytes=3_372_920_832, peak_memory_in_bytes=3_605_248_000, argument_size_in_bytes=1_553_479_680,
        output_size_in_bytes=27_136_512, alias_size_in_bytes=27_133_440,
    )  # fmt: skip
    highest = 2_706_702_336
    assert temp_bytes(reported, find_topology("v5e:2x2")) == pytest.approx(highest, rel=0.005)
    assert temp_bytes(reported, find_topology("cpu:1")) == reported.temp_size_in_bytes
