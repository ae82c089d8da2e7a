"""Projections to and from several parts, in the order in which devices share them."""

import numpy as np
import pytest

from jaxbooth.models.fused import joined, reordered, taken_apart

WIDTHS = (4, 4, 8)


def test_each_devices_piece_holds_its_share_of_every_part():
    columns = np.array([f"{part}{index}" for part, width in zip("qkm", WIDTHS, strict=True) for index in range(width)])
    order = np.asarray(reordered(np.arange(16.0), WIDTHS, pieces=2, axis=-1)).astype(int)
    assert " ".join(columns[order]) == "q0 q1 k0 k1 m0 m1 m2 m3 q2 q3 k2 k3 m4 m5 m6 m7"


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_a_reordered_kernel_has_the_same_parts(pieces, rng):
    x, kernel = rng.normal(size=(2, 3, 5)), rng.normal(size=(5, 16))
    parts = taken_apart(x @ np.asarray(reordered(kernel, WIDTHS, pieces, axis=-1)), WIDTHS, pieces)
    for part, expected in zip(parts, np.split(x @ kernel, [4, 8], axis=-1), strict=True):
        np.testing.assert_allclose(part, expected, rtol=1e-5)


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_reordered_inputs_meet_the_rows_that_they_belong_to(pieces, rng):
    parts, kernel = [rng.normal(size=(2, 3, width)) for width in WIDTHS], rng.normal(size=(16, 5))
    found = np.asarray(joined(parts, pieces)) @ np.asarray(reordered(kernel, WIDTHS, pieces, axis=-2))
    np.testing.assert_allclose(found, np.concatenate(parts, axis=-1) @ kernel, rtol=1e-5)
