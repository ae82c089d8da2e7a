"""A LoRA of another rank: the nearest one by singular values. A LoHa or LoKr becomes a LoRA on the way."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jaxbooth.lora_tools.merge import check_plain
from jaxbooth.lora_tools.svd import Factors, LayerError, truncate, truncate_product
from jaxbooth.models.adapter_kinds import LYCORIS_KINDS
from jaxbooth.weights.lora.adapters import Adapter, LoraWeights, from_adapters, to_adapters
from jaxbooth.weights.lora.lycoris import LycorisAdapter, kind_of, lycoris_adapters


def resize_lora(path: Path, lora: LoraWeights, rank: int) -> tuple[LoraWeights, list[LayerError]]:
    """Returns the nearest LoRA whose layers have at most `rank`, with alpha = rank, and what it leaves out.

    Layers of that rank or less stay as they are.

    Raises:
        UserError: it is a DoRA.
    """
    resized, errors = [], []
    for adapter, factors in decomposed(path, lora, rank):
        resized.append(adapter)
        errors.append(LayerError(f"{adapter.component}.{adapter.module}", factors.squared_error, factors.squared_norm))
    return from_adapters(resized), errors


def decomposed(path: Path, lora: LoraWeights, rank: int) -> Iterator[tuple[Adapter, Factors]]:
    """Yields each layer's adapter and the factors that it was made of."""
    if kind_of(lora) in LYCORIS_KINDS:
        for module in lycoris_adapters(lora):
            factors = truncate(change_matrix(module), rank)
            yield as_adapter(module.component, module.module, factors, input_shape(module)), factors
        return
    check_plain(path, lora)
    for adapter in to_adapters(lora):
        down, up = adapter.lora_a.reshape(adapter.rank, -1), adapter.lora_b.reshape(-1, adapter.rank)
        factors = truncate_product(up * np.float32(adapter.alpha / adapter.rank), down, rank)
        if adapter.rank <= rank:
            yield adapter, factors._replace(squared_error=0.0)
        else:
            yield as_adapter(adapter.component, adapter.module, factors, adapter.lora_a.shape[1:]), factors


def change_matrix(module: LycorisAdapter) -> np.ndarray:
    """Returns what a LoHa or LoKr adds to a weight, (outputs, inputs * window)."""
    factors = {name: value.reshape(len(value), -1) for name, value in module.factors.items()}
    scale = np.float32(module.alpha / module.rank if module.rank else 1.0)
    if module.kind == "loha":
        first, second = (factors[f"hada_w{index}_a"] @ factors[f"hada_w{index}_b"] for index in (1, 2))
        return scale * first * second
    second = factors["lokr_w2"] if "lokr_w2" in factors else factors["lokr_w2_a"] @ factors["lokr_w2_b"]
    return np.kron(scale * factors["lokr_w1"], second)


def input_shape(module: LycorisAdapter) -> tuple[int, ...]:
    """Returns the inputs of a module's weight in torch's layout, with the window of a convolution."""
    if module.kind == "loha":
        return module.factors["hada_w1_b"].shape[1:]
    takes_in = module.factors["lokr_w2" if module.rank is None else "lokr_w2_b"]
    return (module.factors["lokr_w1"].shape[1] * takes_in.shape[1], *takes_in.shape[2:])


def as_adapter(component: str, module: str, factors: Factors, inputs: tuple[int, ...]) -> Adapter:
    """Returns a layer's adapter, with alpha = rank.

    Args:
        inputs: of the layer's weight in torch's layout, with the window of a convolution.
    """
    rank = len(factors.lora_a)
    lora_b = factors.lora_b.reshape(-1, rank, *(1 for _ in inputs[1:]))
    return Adapter(component, module, factors.lora_a.reshape(rank, *inputs), lora_b, None, float(rank))
