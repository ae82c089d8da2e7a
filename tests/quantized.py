"""Quantized parameters of small models, and what they stand for."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxbooth.models.quantization import Quantization, dequantize, quantize, quantized_kernels
from jaxbooth.params import KERNEL_SCALE, ModuleDef, Params


def quantize_params(network: ModuleDef, params: Mapping[str, Any], kind: Quantization) -> Params:
    """Returns a component's parameters with the kernels that a run quantizes in codes and scales."""
    quantized: dict[str, Any] = dict(params)
    for name in quantized_kernels(network.shapes, kind):
        quantized[name], quantized[name + KERNEL_SCALE] = map(np.asarray, quantize(params[name], kind))
    return quantized


def dequantize_params(params: Mapping[str, Any]) -> Params:
    """Returns the float32 parameters that quantized ones stand for."""
    full = {name: value for name, value in params.items() if not name.endswith(KERNEL_SCALE)}
    for name in full:
        if name + KERNEL_SCALE in params:
            full[name] = np.asarray(jax.jit(dequantize)(params[name], params[name + KERNEL_SCALE]))
    return full
