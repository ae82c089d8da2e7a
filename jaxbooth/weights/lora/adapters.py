"""Converts LoRA adapters between the parameters that jaxbooth trains and the matrices that files hold.

The scale of B A is alpha / rank for every module. A rank-stabilised LoRA (alpha / sqrt(rank)) is the same thing with an
alpha that is sqrt(rank) times larger, and is held, read and written so: no reader needs to know of it.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from jaxbooth.models.adapter_kinds import MAGNITUDE
from jaxbooth.models.lora import lora_layers
from jaxbooth.models.low_rank import LORA_A, LORA_B
from jaxbooth.weights.names import export_array, import_axes


class LoraWeights(NamedTuple):
    """A LoRA as jaxbooth trains it.

    Attributes:
        adapters: `<component>.<module>.lora_A.kernel`, `.lora_B.kernel` and, for DoRA,
            `.lora_magnitude_vector.scale` -> float32 array, kernels (in, out) or HWIO.
        alphas: `<component>.<module>` -> alpha; the module's weight is W + alpha / rank * A B.
    """

    adapters: dict[str, np.ndarray]
    alphas: dict[str, float]


class Adapter(NamedTuple):
    """One module's adapter in torch's layout: A (r, in, ...), B (out, r, ...), magnitude (out,)."""

    component: str
    module: str
    lora_a: np.ndarray
    lora_b: np.ndarray
    magnitude: np.ndarray | None
    alpha: float

    @property
    def rank(self) -> int:
        """Columns of the bottleneck."""
        return self.lora_a.shape[0]

    def with_alpha(self, alpha: float) -> "Adapter":
        """Returns the same update under another alpha; the difference goes into B."""
        return self._replace(lora_b=self.lora_b * np.float32(self.alpha / alpha), alpha=alpha)


def to_adapters(lora: LoraWeights) -> list[Adapter]:
    """Splits a LoRA into its modules, in the order of their names."""
    adapters = []
    for key in sorted(lora_layers(lora.adapters)):
        down, up = (export_array(leaf, np.asarray(lora.adapters[f"{key}.{leaf}"])) for leaf in (LORA_A, LORA_B))
        component, _, module = key.partition(".")
        adapters.append(Adapter(component, module, down, up, lora.adapters.get(f"{key}.{MAGNITUDE}"), lora.alphas[key]))
    return adapters


def from_adapters(adapters: Iterable[Adapter]) -> LoraWeights:
    """Joins modules: the inverse of `to_adapters`."""
    lora = LoraWeights({}, {})
    for adapter in adapters:
        key = f"{adapter.component}.{adapter.module}"
        for leaf, value in ((LORA_A, adapter.lora_a), (LORA_B, adapter.lora_b)):
            lora.adapters[f"{key}.{leaf}"] = np.ascontiguousarray(value.transpose(import_axes(leaf, value.ndim)))
        if adapter.magnitude is not None:
            lora.adapters[f"{key}.{MAGNITUDE}"] = adapter.magnitude
        lora.alphas[key] = adapter.alpha
    return lora
