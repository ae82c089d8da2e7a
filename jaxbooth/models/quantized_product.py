"""Products with quantized kernels, which exist in the compute dtype only while one product reads them.

Left to itself, XLA makes such copies ahead, hoists them out of the loop over steps and keeps those of the forward pass
for the backward pass: a full-size model again. So each product's copy is made after its input is there, and once more
after the gradient is. The scales of whole outputs are applied to what comes out, which is exact; so the product reads
the codes themselves, which are exact in bfloat16.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxbooth.models.quantization import dequantize, full_kernel, is_blockwise
from jaxbooth.params import Array

Product = Callable[[Array, Array], Array]  # of an input and a kernel, linear in both


class KernelLayer(nnx.Module):
    """A layer around one kernel, which may be quantized.

    Attributes:
        kernel: parameter: the kernel, or its codes.
        kernel_scale: parameter, where it is quantized.
    """

    kernel: nnx.Param
    kernel_scale: nnx.Param | None = None

    def apply_kernel(self, product: Product, x: Array) -> Array:
        """Returns the product of an input and the kernel, in the input's dtype."""
        if self.kernel_scale is None:
            return product(x, self.kernel[...].astype(x.dtype))
        return quantized_product(product, x.shape, x, self.kernel[...], self.kernel_scale[...])

    def full_kernel(self) -> Array:
        """Returns the kernel in float32."""
        return full_kernel(self.kernel[...], None if self.kernel_scale is None else self.kernel_scale[...])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def quantized_product(product: Product, shape: tuple[int, ...], x: Array, codes: Array, scale: Array) -> Array:
    """Returns the product of `x`, of `shape`, with a quantized kernel, which is frozen: it has no gradient."""
    kernel, output_scale = factors(codes, scale, x)
    y = product(x, kernel)
    return y if output_scale is None else y * output_scale


def forward(
    product: Product, shape: tuple[int, ...], x: Array, codes: Array, scale: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Keeps the codes and scales, which are there anyway."""
    return quantized_product(product, shape, x, codes, scale), (codes, scale)


def backward(
    product: Product, shape: tuple[int, ...], saved: tuple[Array, Array], grad: Array
) -> tuple[Array, None, None]:
    """Returns the gradient of the input alone."""
    kernel, output_scale = factors(*saved, grad)
    grad = grad if output_scale is None else grad * output_scale
    (x_grad,) = jax.vjp(lambda x: product(x, kernel), jnp.zeros(shape, grad.dtype))[1](grad)
    return x_grad, None, None


quantized_product.defvjp(forward, backward)


def factors(codes: Array, scale: Array, other: Array) -> tuple[Array, Array | None]:
    """Returns what the other factor of a product is multiplied by, in its dtype, and what its result is scaled by."""
    codes = after(codes, other)
    if is_blockwise(scale):
        return dequantize(codes, scale, other.dtype), None
    return codes.astype(other.dtype), scale.astype(other.dtype)


def after(codes: Array, other: Array) -> Array:
    """Returns codes from which nothing is computed before the other factor is there.

    A barrier says so, except that XLA's CPU compiler drops barriers. There the codes are combined with a zero that is
    computed from the other factor; on several devices that value would have to travel, and the barrier stays.
    """
    if jax.sharding.get_abstract_mesh().size > 1:
        return with_barrier(codes, other)
    return jax.lax.platform_dependent(codes, other, cpu=with_zero, default=with_barrier)


def with_barrier(codes: Array, other: Array) -> Array:
    """Returns the codes behind an optimization barrier."""
    return jax.lax.optimization_barrier((codes, other))[0]


def with_zero(codes: Array, other: Array) -> Array:
    """Returns the codes, bit by bit or-ed with zero times a value, which XLA may not simplify: it could be NaN."""
    zero = (0 * other.reshape(-1)[0]).astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(codes, jnp.uint8) | zero
    return jax.lax.bitcast_convert_type(bits, codes.dtype)
