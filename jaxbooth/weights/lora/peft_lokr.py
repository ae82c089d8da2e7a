"""LoKr files for diffusers, in PEFT's names, and which LoKr diffusers (0.42) reads from them.

PEFT makes the factors of all layers from one number, which diffusers finds from the shapes in the file. Where the
number divides a side, PEFT puts it into the first factor, and LyCORIS the smaller one of the two: a number above the
root of a side is not found.
"""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from jaxbooth.models.lokr import NEAREST, factorize
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.lora.lycoris import LycorisAdapter, lycoris_adapters, stored_tensors, with_scale
from jaxbooth.weights.lora.write import write_arrays
from jaxbooth.weights.names import published_path


def write_peft_lokr(path: Path, lora: LoraWeights, metadata: Mapping[str, str], dtype: np.dtype | None = None) -> int:
    """Writes the file from which diffusers reads a LoKr of a flow transformer; returns the number of tensors.

    There are no alphas in it: alpha / rank is multiplied into the first factor.

    Raises:
        UserError: the file exists.
    """
    tensors = {}
    for adapter in lycoris_adapters(with_scale(lora, 1.0)):
        name = f"{adapter.component}.{published_path(adapter.component, adapter.module)}"
        for factor, value in stored_tensors(adapter):
            tensors[f"{name}.{factor}"] = value
    return write_arrays(path, tensors, {"format": "pt"} | dict(metadata), dtype)


def peft_factor(lora: LoraWeights) -> int | None:
    """Returns the number that diffusers finds for a LoKr, PEFT's `decompose_factor`; None: it refuses the file."""
    sides = [pair for adapter in lycoris_adapters(lora) for pair in side_factors(adapter)]
    candidates = [*sorted({first for first, _ in sides[::2]}), NEAREST]
    for candidate in candidates:
        if all(peft_factors(prod(pair), candidate) == pair for pair in sides):
            return candidate
    return None


def side_factors(adapter: LycorisAdapter) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns the two factors of a layer's outputs, and of its inputs."""
    parts = adapter.factors
    outputs = parts["lokr_w2" if "lokr_w2" in parts else "lokr_w2_a"].shape[0]
    inputs = parts["lokr_w2" if "lokr_w2" in parts else "lokr_w2_b"].shape[1]
    return (parts["lokr_w1"].shape[0], outputs), (parts["lokr_w1"].shape[1], inputs)


def peft_factors(size: int, factor: int) -> tuple[int, int]:
    """Returns the two factors of a number as PEFT 0.21 makes them (`factorization` of its LoKr layers)."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    return factorize(size, factor)
