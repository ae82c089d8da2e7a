"""Adapters of layers that some files join in one matrix."""

import numpy as np
import pytest

from jaxbooth.weights.lora.adapters import Adapter
from jaxbooth.weights.lora.fused import can_fuse, fuse, split, swap_halves

WIDTHS = (6, 4, 5)


def adapter(width: int, rank: int, alpha: float, dora: bool = False, seed: int = 0) -> Adapter:
    rng = np.random.default_rng(seed)
    down, up = rng.normal(size=(rank, 8)).astype("f4"), rng.normal(size=(width, rank)).astype("f4")
    magnitude = rng.uniform(1, 2, width).astype("f4") if dora else None
    return Adapter("transformer", f"layer_{seed}", down, up, magnitude, alpha)


def delta(part: Adapter | None, width: int = 0) -> np.ndarray:
    """The change of a weight in float64."""
    if part is None:
        return np.zeros((width, 8))
    return part.alpha / part.rank * part.lora_b.astype(float) @ part.lora_a.astype(float)


def check_same(parts, fused):
    expected = np.concatenate([delta(part, width) for part, width in zip(parts, WIDTHS, strict=True)])
    np.testing.assert_allclose(delta(fused), expected, rtol=0, atol=1e-6)  # alpha / rank in float32


@pytest.mark.parametrize("ranks", [(3, 3, 3), (2, 1, 4), (2, None, 2), (None, 3, None), (1, None, 2)])
@pytest.mark.parametrize("alphas", [(3, 3, 3), (1, 5, 0.5)])
def test_a_fused_adapter_changes_the_weight_as_its_parts_and_comes_apart_again(ranks, alphas):
    parts = [
        None if rank is None else adapter(width, rank, alpha, seed=index)
        for index, (width, rank, alpha) in enumerate(zip(WIDTHS, ranks, alphas, strict=True))
    ]
    fused = fuse(parts, WIDTHS)
    assert (fused.rank, fused.alpha) == (sum(rank or 0 for rank in ranks), fused.rank)
    check_same(parts, fused)
    found = {part.module: part for part in split(fused, ["layer_0", "layer_1", "layer_2"], WIDTHS)}
    for index, (part, width) in enumerate(zip(parts, WIDTHS, strict=True)):
        if part is None:
            assert f"layer_{index}" not in found
        else:
            np.testing.assert_allclose(delta(found[part.module]), delta(part, width), rtol=0, atol=1e-6)
            assert found[part.module].rank == part.rank


def test_an_alpha_of_the_rank_goes_through_bit_for_bit():
    parts = [adapter(width, 4, 4, dora=True, seed=index) for index, width in enumerate(WIDTHS)]
    for part, found in zip(parts, split(fuse(parts, WIDTHS), ["layer_0", "layer_1", "layer_2"], WIDTHS), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(part, found, strict=True))


@pytest.mark.parametrize("rank", [4, 6])
def test_the_layers_of_an_adapter_that_was_trained_fused_share_its_a(rank):
    fused = adapter(15, rank, 2.5)
    parts = split(fused, ["q", "k", "v"], WIDTHS)
    assert all(np.array_equal(part.lora_a, fused.lora_a) and part.alpha == 2.5 for part in parts)
    check_same(parts, fused)


def test_a_dora_of_some_of_the_layers_cannot_be_fused():
    some = [adapter(6, 2, 2, dora=True), None, adapter(5, 2, 2, dora=True)]
    assert not can_fuse(some)
    assert can_fuse([some[0], adapter(4, 2, 2, dora=True), some[2]])
    assert can_fuse([adapter(6, 2, 2), None, None])


def test_swapped_halves_come_back():
    part = adapter(6, 2, 2, dora=True)
    assert np.array_equal(swap_halves(part).lora_b, part.lora_b[[3, 4, 5, 0, 1, 2]])
    assert all(np.array_equal(a, b) for a, b in zip(swap_halves(swap_halves(part)), part, strict=True))
