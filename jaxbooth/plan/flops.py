"""Floating-point operations of one equation of a jaxpr, as XLA counts them (`HloCostAnalysis`).

Two for each product that a matrix product or convolution really forms, so that neither the zeros of a convolution's
padding nor those of a dilated gradient count; one for each element of other arithmetic. Whoever calls this
multiplies by the passes through loops.
"""

from functools import cache
from typing import Any

import numpy as np

DOT, CONV, KERNEL, ELEMENTS = "dot_general", "conv_general_dilated", "pallas_call", "elements"
KINDS = (DOT, CONV, KERNEL, ELEMENTS)  # of work
PIECES = 8  # into which a TPU splits a convolution's input along its width
MAX_SPLIT_WIDTH = 16  # up to which the overlap of the pieces costs FLOPs worth counting
ARITHMETIC = {
    "add", "add_any", "sub", "mul", "div", "max", "min", "neg", "square", "integer_pow", "sqrt", "rsqrt", "exp", "log",
    "logistic", "tanh", "erf", "erfc", "sin", "cos", "select_n", "pow",
}  # fmt: skip


def equation_flops(equation: Any) -> tuple[str, int]:
    """Returns the kind of an equation's work and its FLOPs."""
    name = equation.primitive.name
    if name == DOT:
        return DOT, dot_flops(equation)
    if name == CONV:
        return CONV, conv_flops(equation)
    if name == KERNEL:
        grid = equation.params["grid_mapping"].grid
        return KERNEL, int(np.prod(grid, dtype=np.int64)) * kernel_flops(equation.params["jaxpr"])
    if name.startswith("reduce_"):
        return ELEMENTS, equation.invars[0].aval.size
    return ELEMENTS, equation.outvars[0].aval.size if name in ARITHMETIC else 0


def kernel_flops(jaxpr: Any) -> int:
    """Returns the FLOPs of the matrix products in the body of a kernel, the costliest branch of each condition."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == DOT:
            total += dot_flops(equation)
        elif name == "cond":
            total += max(kernel_flops(branch.jaxpr) for branch in params["branches"])
        elif "jaxpr" in params:
            total += params.get("length", 1) * kernel_flops(getattr(params["jaxpr"], "jaxpr", params["jaxpr"]))
    return total


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


def halo_flops(equation: Any, flops: int) -> int:
    """Returns the FLOPs that a convolution takes on top where XLA splits its input into pieces along the width.

    It does so on a TPU with few examples; the pieces overlap by one position, which counts where they are narrow.
    """
    if equation.primitive.name != CONV:
        return 0
    numbers = equation.params["dimension_numbers"]
    width = equation.invars[0].aval.shape[numbers.lhs_spec[-1]]
    return flops * PIECES // width if PIECES <= width <= MAX_SPLIT_WIDTH else 0


@cache
def meeting_pairs(size: int, window: int, out: int, stride: int, low: int, dilation: int, spread: int) -> int:
    """Counts pairs (output position, window position) that fall on an element, not on padding or between elements.

    Args:
        size, window, out: of input, kernel and output along one dimension.
        low: padding before the first element.
        dilation: distance of the input's elements; `spread`: of the kernel's.
    """
    position = np.arange(out)[:, None] * stride + np.arange(window)[None] * spread - low
    is_inside = (position >= 0) & (position <= (size - 1) * dilation)
    return int(np.sum(is_inside & (position % dilation == 0)))
