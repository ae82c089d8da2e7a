"""Rotary position embeddings against diffusers and transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed
from diffusers.models.transformers.transformer_z_image import RopeEmbedder
from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding, apply_rotary_pos_emb

from jaxbooth.models.rope import (
    Rotation,
    at_positions,
    half_rotation,
    neighbour_rotation,
    rope_angles,
    rotate_halves,
    rotate_neighbours,
    rotated,
    swapped_by_product,
    swapped_by_shifts,
)

BITS = {"atol": 3e-7, "rtol": 0}  # of numbers up to 3: the same products, in another order


def positions_of_an_image(start, height, width):
    grid = np.meshgrid([start], np.arange(height), np.arange(width), indexing="ij")
    return np.stack(grid, axis=-1).reshape(-1, 3).astype(np.int32)


def test_angles_of_three_axes_are_z_images(rng):
    widths, lengths, theta = (8, 6, 4), (1024, 512, 512), 256.0
    positions = positions_of_an_image(997, 3, 5)
    table = RopeEmbedder(theta, widths, lengths)(torch.tensor(positions))
    rotation = neighbour_rotation(rope_angles(positions, widths, theta).astype(np.float32))
    np.testing.assert_allclose(rotation.cos[:, ::2], table.real, **BITS)
    np.testing.assert_allclose(rotation.sin[:, 1::2], table.imag, **BITS)

    x = rng.normal(size=(2, 15, 3, 18)).astype(np.float32)
    pairs = torch.view_as_complex(torch.tensor(x).reshape(2, 15, 3, 9, 2)) * table[None, :, None]
    np.testing.assert_allclose(rotate_neighbours(x, rotation), torch.view_as_real(pairs).flatten(3), **BITS)


def test_neighbours_are_rotated_as_in_flux2(rng):
    positions = rng.integers(0, 64, size=(9, 4)).astype(np.int32)
    tables = Flux2PosEmbed(2000, [4, 4, 6, 6])(torch.tensor(positions))
    rotation = neighbour_rotation(rope_angles(positions, [4, 4, 6, 6], 2000))
    x = rng.normal(size=(2, 9, 3, 20)).astype(np.float32)
    expected = apply_rotary_emb(torch.tensor(x), tables, sequence_dim=1)
    np.testing.assert_allclose(rotate_neighbours(x, rotation), expected, **BITS)


def test_halves_are_rotated_as_in_qwen3(rng):
    config = Qwen3Config(hidden_size=32, num_attention_heads=2, head_dim=16)
    length = 512
    theta = config.rope_parameters["rope_theta"]
    x = rng.normal(size=(1, length, 2, 16)).astype(np.float32)
    cos, sin = Qwen3RotaryEmbedding(config)(torch.tensor(x), torch.arange(length)[None])
    expected = apply_rotary_pos_emb(torch.tensor(x), torch.tensor(x), cos, sin, unsqueeze_dim=2)[0]
    rotation = half_rotation(rope_angles(np.arange(length)[:, None], [16], theta, np.float32))
    # transformers' angles are float32: of 512 radians, the last bit is 3e-5.
    np.testing.assert_allclose(rotate_halves(x, rotation), expected, atol=1e-4)
    np.testing.assert_allclose(rotate_halves(x, rotation)[:, :8], expected[:, :8], atol=2e-6)


def test_traced_positions_look_their_rotation_up(rng):
    widths = (6, 4)
    tables = [neighbour_rotation(rope_angles(np.arange(32)[:, None], [width], 100.0)) for width in widths]
    positions = rng.integers(0, 32, size=(2, 5, 2))
    found = jax.jit(lambda rows: at_positions(tables, rows))(positions)
    for row in range(2):
        expected = neighbour_rotation(rope_angles(positions[row], widths, 100.0))
        np.testing.assert_array_equal(found.cos[row], expected.cos)
        np.testing.assert_array_equal(found.sin[row], expected.sin)


def test_each_row_has_its_own_rotation(rng):
    tables = [neighbour_rotation(rope_angles(np.arange(5)[:, None] + row, [6], 100.0)) for row in range(2)]
    x = jnp.asarray(rng.normal(size=(2, 5, 3, 6)), jnp.float32)
    both = rotate_neighbours(x, Rotation(*map(np.stack, zip(*tables, strict=True))))
    for row in range(2):
        np.testing.assert_array_equal(both[row], rotate_neighbours(x[row : row + 1], tables[row])[0])


def test_bfloat16_is_rotated_in_float32_and_rounded_once(rng):
    rotation = neighbour_rotation(rope_angles(np.arange(7)[:, None], [16], 256.0))
    x = jnp.asarray(rng.normal(size=(1, 7, 2, 16)), jnp.bfloat16)
    for rotate in (rotate_neighbours, rotate_halves):
        exact = rotate(x.astype(jnp.float32), rotation)
        assert rotate(x, rotation).dtype == jnp.bfloat16
        np.testing.assert_array_equal(rotate(x, rotation), exact.astype(jnp.bfloat16))


def test_the_gradient_is_the_rotation_back(rng):
    rotation = neighbour_rotation(rope_angles(np.arange(7)[:, None], [16], 256.0))
    x, grad = (jnp.asarray(rng.normal(size=(1, 7, 2, 16)), jnp.float32) for _ in range(2))
    for rotate in (rotate_neighbours, rotate_halves):
        back = Rotation(rotation.cos, -rotation.sin)
        if rotate is rotate_halves:
            angles = rope_angles(np.arange(7)[:, None], [16], 256.0)
            rotation, back = half_rotation(angles), half_rotation(-angles)
        pulled = jax.vjp(lambda x, rotate=rotate, rotation=rotation: rotate(x, rotation), x)[1](grad)[0]
        np.testing.assert_allclose(pulled, rotate(grad, back), **BITS)


def test_a_product_swaps_neighbours_exactly_as_shifts_do(rng):
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.asarray(rng.normal(size=(1, 7, 2, 16)), dtype)
        np.testing.assert_array_equal(swapped_by_product(x), swapped_by_shifts(x))
        np.testing.assert_array_equal(swapped_by_shifts(x)[..., :4], x[..., jnp.array([1, 0, 3, 2])])


def test_the_gradient_is_the_one_that_jax_derives_bit_by_bit(rng):
    rotation = neighbour_rotation(rope_angles(np.arange(7)[:, None], [16], 256.0))
    for dtype in (jnp.float32, jnp.bfloat16):
        x, grad = (jnp.asarray(rng.normal(size=(1, 7, 2, 16)), dtype) for _ in range(2))

        def derived(x):
            values = x.astype(jnp.float32)
            return rotated(values, swapped_by_shifts(values), rotation).astype(x.dtype)

        expected = jax.vjp(derived, x)[1](grad)[0]
        np.testing.assert_array_equal(jax.vjp(lambda x: rotate_neighbours(x, rotation), x)[1](grad)[0], expected)
