"""The convolution and its hand-written CPU gradients."""

import jax
import numpy as np
import pytest

from jaxbooth.models.conv import conv2d, plain_conv


@pytest.mark.parametrize(("side", "stride", "padding"), [(8, 1, 1), (8, 2, 1), (9, 2, 0), (9, 2, 1), (7, 1, 0)])
def test_gradients_equal_those_of_jax(side, stride, padding, rng):
    x = rng.normal(size=(2, side, side, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 5)).astype(np.float32)
    out, pull = jax.vjp(lambda a, b: conv2d(a, b, stride, padding), x, kernel)
    expected, expected_pull = jax.vjp(lambda a, b: plain_conv(a, b, stride, padding), x, kernel)
    cotangent = rng.normal(size=out.shape).astype(np.float32)
    np.testing.assert_array_equal(out, expected)
    for found, wanted in zip(pull(cotangent), expected_pull(cotangent), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5)
