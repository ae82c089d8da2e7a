"""The 2-D convolution, with a backward pass that stays fast inside loops on a CPU.

XLA's CPU compiler canonicalises convolution layouts outside of loops only. JAX's own gradient rules ask for
transposed layouts, which in the body of a `while` run 30 times slower there (jax issue 12868). On a CPU the two
gradients are therefore written as plain NHWC x HWIO convolutions of transposed arrays; elsewhere JAX's rules stay.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float

from jaxbooth.models.broadcast import add_broadcast
from jaxbooth.models.quantized_product import KernelLayer
from jaxbooth.params import Array

Features = Float[Array, "b h w c"]
Kernel = Float[Array, "k k c out"]
Result = Float[Array, "b h_out w_out out"]
LAYOUT = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv2d(x: Features, kernel: Kernel, stride: int, padding: int) -> Result:
    """Convolves, with `padding` zeros on every side."""
    return plain_conv(x, kernel, stride, padding)


def plain_conv(x: Features, kernel: Kernel, stride: int, padding: int) -> Result:
    """`conv2d` with JAX's own gradient rules."""
    pads = ((padding, padding),) * 2
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=LAYOUT)


def conv2d_forward(x: Array, kernel: Array, stride: int, padding: int) -> tuple[Array, tuple[Array, Array]]:
    """Keeps both inputs for the backward pass."""
    return plain_conv(x, kernel, stride, padding), (x, kernel)


def conv2d_backward(stride: int, padding: int, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    """Chooses the form by the platform that the program is compiled for, which need not be this process's."""

    def default(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
        return jax.vjp(lambda a, b: plain_conv(a, b, stride, padding), x, kernel)[1](grad)

    canonical = functools.partial(canonical_gradients, stride, padding)
    return jax.lax.platform_dependent(*saved, grad, cpu=canonical, default=default)


def canonical_gradients(stride: int, padding: int, x: Array, kernel: Array, grad: Array) -> tuple[Array, Array]:
    """Returns the gradients with respect to `x` and `kernel`, each as one convolution in the canonical layout."""
    size, height, width = kernel.shape[0], x.shape[1], x.shape[2]
    reach = [(side - 1) * stride + 1 for side in grad.shape[1:3]]  # of the stride-dilated gradient
    low = size - 1 - padding
    x_pads = [(low, side - r - low + size - 1) for side, r in zip((height, width), reach, strict=True)]
    flipped = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    x_grad = jax.lax.conv_general_dilated(
        grad, flipped, (1, 1), x_pads, lhs_dilation=(stride, stride), dimension_numbers=LAYOUT
    )
    kernel_pads = [(padding, size - side - padding + r - 1) for side, r in zip((height, width), reach, strict=True)]
    kernel_grad = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        grad.transpose(1, 2, 0, 3),
        (1, 1),
        kernel_pads,
        rhs_dilation=(stride, stride),
        dimension_numbers=LAYOUT,
    )
    return x_grad, kernel_grad.transpose(1, 2, 0, 3)


conv2d.defvjp(conv2d_forward, conv2d_backward)


class Conv(KernelLayer):
    """torch `Conv2d` with a square kernel; parameters `kernel` (HWIO) and, if `use_bias`, `bias`.

    Args:
        inputs, outputs: channels.
        size: side of the kernel.
        padding: zeros on every side.
        dtype: computed in.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int,
        padding: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
        use_bias: bool = True,
    ):
        self.stride, self.padding, self.dtype = stride, padding, dtype
        init = jax.nn.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if use_bias else None

    def __call__(self, x: Features) -> Result:
        is_pointwise = self.kernel.shape[0] == 1 and self.stride == 1

        def convolve(x: Array, kernel: Array) -> Array:
            return x @ kernel[0, 0] if is_pointwise else conv2d(x, kernel, self.stride, self.padding)

        y = self.apply_kernel(convolve, x.astype(self.dtype))
        return y if self.bias is None else add_broadcast(y, self.bias[...])
