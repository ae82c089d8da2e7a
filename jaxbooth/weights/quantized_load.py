"""Kernels quantized as they are loaded: one at a time, on the devices that hold its parts."""

import functools
from collections.abc import Callable

import jax

from jaxbooth.models.quantization import Quantization, Quantized, quantize, quantized_shape
from jaxbooth.params import KERNEL_SCALE, Params


def quantize_param(
    name: str, kernel: jax.Array, place: Callable[[str, tuple[int, ...]], jax.sharding.Sharding], kind: Quantization
) -> Params:
    """Returns a kernel's codes and scales under their names, where `place` says.

    It waits for them, so that a kernel has left the devices' memory before the next one is read.
    """
    shape, scale_name = quantized_shape(kernel.shape, kind), name + KERNEL_SCALE
    run = quantizer(kind, place(name, shape.codes.shape), place(scale_name, shape.scale.shape))
    codes, scale = jax.block_until_ready(run(kernel))
    return {name: codes, scale_name: scale}


@functools.cache
def quantizer(
    kind: Quantization, codes: jax.sharding.Sharding, scale: jax.sharding.Sharding
) -> Callable[[jax.Array], Quantized]:
    """Returns the jitted `quantize` whose results lie where they are told to."""
    return jax.jit(functools.partial(quantize, kind=kind), out_shardings=Quantized(codes, scale))
