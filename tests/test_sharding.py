"""The partition rule."""

from dataclasses import dataclass

import jax
import pytest
from jax.sharding import PartitionSpec as P

from jaxbooth.errors import UserError
from jaxbooth.sharding import arrange, batch_shards, check_heads, make_mesh, partition_spec, shardings_like


def test_data_takes_what_the_other_axes_leave():
    assert dict(make_mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            (3, 1, 1),
            r"--mesh.data 3 x --mesh.fsdp 1 x --mesh.tensor 1 does not make 8 device\(s\); --mesh.data 8 would.",
        ),
        ((-1, 3, 1), r"--mesh.fsdp 3 does not divide 8 device\(s\); 1, 2, 4 or 8 would."),
        ((-1, 1, 5), r"--mesh.tensor 5 does not divide 8 device\(s\); 1, 2, 4 or 8 would."),
        ((-1, 8, 2), r"--mesh.fsdp 8 does not divide 8 device\(s\) in 2 parts; 1, 2 or 4 would."),
    ],
)
def test_axes_that_do_not_fit_are_refused_with_those_that_would(sizes, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        make_mesh(*sizes)


def test_heads_are_not_cut_into_pieces():
    check_heads(2, {10, 20, 12})
    with pytest.raises(UserError, match=r"--mesh.tensor 4 does not divide .* heads \(10, 12, 20\); 1 or 2 would."):
        check_heads(4, {10, 20, 12})


@dataclass(frozen=True)
class Chip:
    """Stands in for a TPU of a v5e host with four of them."""

    id: int
    slice_index: int
    coords: tuple[int, int, int]
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def two_slices():
    """Returns 2 x 8 chips in an order that mixes them."""
    chips = [
        Chip(10 * s + 2 * x + y, s, (x, y, 0), 2 * s + x // 2) for x in range(4) for y in range(2) for s in range(2)
    ]
    return chips[::-1]


@pytest.mark.parametrize("sizes", [(2, 8, 1), (4, 4, 1), (4, 2, 2), (16, 1, 1)])
def test_slices_are_apart_along_data_alone(sizes):
    laid = arrange(two_slices(), sizes)
    assert laid.shape == sizes
    assert len({chip.id for chip in laid.flat}) == 16
    for index, part in enumerate(laid):
        assert {chip.slice_index for chip in part.flat} == {index * 2 // sizes[0]}


def test_pieces_of_a_model_do_not_span_slices():
    with pytest.raises(UserError, match=r"fsdp 16 x --mesh.tensor 1 does not divide the 8 devices of each of 2 slices"):
        arrange(two_slices(), (1, 16, 1))


def test_devices_of_a_host_hold_the_pieces_of_one_model():
    hosts = [Chip(id, id, (0, 0, 0), id // 4, platform="gpu", device_kind="H100") for id in (5, 0, 3, 6, 1, 7, 2, 4)]
    for part in arrange(hosts, (2, 2, 2)):
        assert len({device.process_index for device in part.flat}) == 1


def test_embeddings_are_split_along_their_width():
    mesh = make_mesh(data=1, fsdp=8)
    assert partition_spec("embeddings.token_embedding.embedding", (49408, 768), mesh) == P(None, "fsdp")


def test_a_gates_two_halves_are_stored_in_one_piece():
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    assert partition_spec("b.ff.net.0.proj.kernel", (320, 2560), mesh) == P("fsdp", None)
    assert partition_spec("b.ff.net.0.proj.bias", (2560 * 4,), mesh) == P(None)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("transformer_blocks.0.attn.to_q.kernel", (64, 64), P("fsdp", "tensor")),
        ("transformer_blocks.0.attn.add_k_proj.kernel", (64, 64), P("fsdp", "tensor")),
        ("transformer_blocks.0.attn.to_out.0.kernel", (64, 64), P("tensor", "fsdp")),
        ("transformer_blocks.0.attn.to_add_out.kernel", (64, 64), P("tensor", "fsdp")),
        ("transformer_blocks.0.ff_context.linear_in.kernel", (64, 384), P("fsdp", None)),
        ("transformer_blocks.0.ff_context.linear_out.kernel", (192, 64), P("tensor", "fsdp")),
        ("single_transformer_blocks.0.attn.to_qkv_mlp_proj.kernel", (64, 576), P("fsdp", None)),
        ("single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_B.kernel", (16, 576), P("fsdp", None)),
        ("single_transformer_blocks.0.attn.to_out.kernel", (256, 64), P(None, "fsdp")),
        ("single_transformer_blocks.0.attn.to_out.lora_A.kernel", (256, 16), P(None, "fsdp")),
        ("single_transformer_blocks.0.attn.norm_q.scale", (16,), P(None)),
        ("double_stream_modulation_img.linear.kernel", (64, 384), P(None, "fsdp")),
    ],
)
def test_flux2s_fused_projections_are_stored_in_one_piece_along_their_parts(name, shape, expected):
    assert partition_spec(name, shape, make_mesh(data=1, fsdp=2, tensor=4)) == expected


def test_fsdp_takes_the_largest_divisible_dimension():
    mesh = make_mesh(data=1, fsdp=8)
    assert partition_spec("a.kernel", (3, 3, 320, 640), mesh) == P(None, None, None, "fsdp")
    assert partition_spec("a.kernel", (3, 3, 641, 320), mesh) == P(None, None, None, "fsdp")


def test_small_parameters_are_replicated():
    assert partition_spec("a.bias", (320,), make_mesh(data=1, fsdp=8)) == P(None)


def test_tensor_splits_outputs_going_in_and_inputs_coming_out():
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    assert partition_spec("b.attn1.to_q.kernel", (320, 320), mesh) == P("fsdp", "tensor")
    assert partition_spec("b.attn1.to_out.0.kernel", (320, 320), mesh) == P("tensor", "fsdp")
    assert partition_spec("layers.0.attention.to_k.kernel", (320, 320), mesh) == P("fsdp", "tensor")
    assert partition_spec("layers.0.attention.to_out.0.kernel", (320, 320), mesh) == P("tensor", "fsdp")
    assert partition_spec("layers.0.feed_forward.w1.kernel", (320, 848), mesh) == P("fsdp", "tensor")
    assert partition_spec("layers.0.feed_forward.w3.kernel", (320, 848), mesh) == P("fsdp", "tensor")
    assert partition_spec("layers.0.feed_forward.w2.kernel", (848, 320), mesh) == P("tensor", "fsdp")


def test_a_layer_with_one_head_and_a_modulation_are_not_split_by_tensor():
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    assert partition_spec("encoder.mid_block.attentions.0.to_q.kernel", (512, 512), mesh) == P("fsdp", None)
    assert partition_spec("layers.0.adaLN_modulation.0.kernel", (256, 1280), mesh) == P(None, "fsdp")


def test_rows_go_over_data_and_fsdp():
    assert batch_shards(make_mesh(data=2, fsdp=4)) == 8


def test_optimizer_moments_live_where_their_parameter_does():
    mesh = make_mesh(data=1, fsdp=8)
    leaf = jax.ShapeDtypeStruct((640, 320), "float32")
    found = shardings_like({"mu": {"unet.a.kernel": leaf}, "count": jax.ShapeDtypeStruct((), "int32")}, mesh)
    assert found["mu"]["unet.a.kernel"].spec == P("fsdp", None)
    assert found["count"].spec == P()
