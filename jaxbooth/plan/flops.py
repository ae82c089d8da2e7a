"""Multiplications and additions of one equation of a jaxpr: matrix products and convolutions, nothing else.

As XLA counts them (`HloCostAnalysis`): two for each product that is really formed, so that neither the zeros of a
convolution's padding nor those of a dilated gradient count.
"""

from functools import cache
from typing import Any

import numpy as np


def equation_flops(equation: Any) -> int:
    """Returns FLOPs of a `dot_general` or `conv_general_dilated`, and 0 of anything else."""
    name = equation.primitive.name
    if name == "dot_general":
        return dot_flops(equation)
    return conv_flops(equation) if name == "conv_general_dilated" else 0


def dot_flops(equation: Any) -> int:
    """2 x elements of the result x length of the contraction."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * int(np.prod([lhs[axis] for axis in contracted], dtype=np.int64))


def conv_flops(equation: Any) -> int:
    """2 x batch x outputs x inputs of a group x pairs of positions that meet, dimension by dimension."""
    params, numbers = equation.params, equation.params["dimension_numbers"]
    lhs, rhs = (invar.aval.shape for invar in equation.invars)
    out = equation.outvars[0].aval.shape
    pairs = 1
    for axis in range(len(numbers.lhs_spec) - 2):
        pairs *= meeting_pairs(
            lhs[numbers.lhs_spec[axis + 2]],
            rhs[numbers.rhs_spec[axis + 2]],
            out[numbers.out_spec[axis + 2]],
            params["window_strides"][axis],
            params["padding"][axis][0],
            params["lhs_dilation"][axis],
            params["rhs_dilation"][axis],
        )
    batch, outputs = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return 2 * batch * outputs * rhs[numbers.rhs_spec[1]] * pairs // params["batch_group_count"]


@cache
def meeting_pairs(size: int, window: int, out: int, stride: int, low: int, dilation: int, spread: int) -> int:
    """Counts pairs (output position, window position) that fall on an element, not on padding or between elements.

    Args:
        size, window, out: of input, kernel and output along one dimension.
        low: padding before the first element.
        dilation: distance of the input's elements; `spread`: of the kernel's.
    """
    place = np.arange(out)[:, None] * stride + np.arange(window)[None] * spread - low
    return int(np.sum((place >= 0) & (place <= (size - 1) * dilation) & (place % dilation == 0)))
