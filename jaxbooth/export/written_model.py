"""What the parameters of an export should be, worked out one at a time to compare the written ones with.

Adapters are added by numpy in float64 here, where the writer merges them on the devices in float32.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from jaxbooth.export.format import Export
from jaxbooth.models.adapter_kinds import MAGNITUDE
from jaxbooth.models.loha import HADA_W1_A, HADA_W1_B, HADA_W2_A, HADA_W2_B
from jaxbooth.models.lokr import LOKR_W1, LOKR_W2, LOKR_W2_A, LOKR_W2_B
from jaxbooth.models.lora import layer_parts
from jaxbooth.models.low_rank import LORA_A, LORA_B
from jaxbooth.params import AnyArray
from jaxbooth.weights.diffusers_read import StoredParameters
from jaxbooth.weights.diffusers_write import DTYPES

# What float32 arithmetic may lose, relative to a tensor's largest value: a kernel plus a product over the rank, and
# for DoRA also a norm over a fan-in of ten thousand. Values that were only copied or cast must be the same bits.
MERGE_ERROR, DORA_ERROR = 1e-6, 1e-5


class WrittenModel:
    """The parameters of a whole model's export: trained, the base model's with adapters added, or the base model's.

    Of another format they are the base model's, which its readers add the rest to.

    Attributes:
        trained: component -> trained parameters or adapters, of components that the export changes.
    """

    def __init__(self, export: Export):
        self.base = export.base
        self.trained = export.weights() if export.format.is_whole_model else {}
        self.asked_dtype = DTYPES[export.dtype] if export.format.is_whole_model else None

    @cached_property
    def stored(self) -> dict[str, StoredParameters]:
        """Component -> parameters in the base model's files."""
        base = self.base
        return {name: StoredParameters(base.folder / name, base.module(name)) for name in base.components}

    def adapter(self, component: str, name: str) -> dict[str, AnyArray]:
        """Returns the parts of a kernel's adapter, by the ends of their names; empty if it has none."""
        return layer_parts(self.trained.get(component, {}), name.removesuffix(".kernel"))

    def error(self, component: str, name: str) -> float:
        """Returns what float32 arithmetic may have changed of a parameter, relative to the largest value."""
        adapter = self.adapter(component, name)
        if not adapter:
            return 0.0
        return DORA_ERROR if MAGNITUDE in adapter else MERGE_ERROR

    def dtype(self, component: str, name: str) -> np.dtype:
        """Returns the dtype that a parameter is written in."""
        return self.asked_dtype or self.stored[component].dtype(name)

    def value(self, component: str, name: str) -> np.ndarray:
        """Returns a parameter as it should be written, in jaxbooth's layout."""
        trained, adapter = self.trained.get(component, {}), self.adapter(component, name)
        value = np.asarray(trained[name]) if name in trained else self.stored[component][name]
        if adapter:
            assert self.base.lora is not None
            value = add_adapter(value, adapter, self.base.lora.scale_of(adapter))
        with np.errstate(over="ignore"):  # an overflow to infinity is found when the export is verified
            return value.astype(self.dtype(component, name))


def add_adapter(kernel: np.ndarray, adapter: Mapping[str, AnyArray], scale: float) -> np.ndarray:
    """Returns W + scale times the adapter's change, with DoRA's magnitudes in place of the outputs' norms; float64."""
    parts = {part: np.asarray(value, np.float64) for part, value in adapter.items()}
    total = kernel.astype(np.float64) + scale * change(parts)
    if MAGNITUDE in parts:
        total *= parts[MAGNITUDE] / np.sqrt(np.square(total).sum(axis=tuple(range(total.ndim - 1))))
    return total


def change(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns what a LoRA, LoHa or LoKr adds to a kernel, unscaled."""
    if LORA_A in parts:
        return product(parts[LORA_A], parts[LORA_B])
    if HADA_W1_A in parts:
        return product(parts[HADA_W1_B], parts[HADA_W1_A]) * product(parts[HADA_W2_B], parts[HADA_W2_A])
    second = parts[LOKR_W2] if LOKR_W2 in parts else product(parts[LOKR_W2_B], parts[LOKR_W2_A])
    return np.kron(parts[LOKR_W1], second)  # numpy puts ones before the shape of the smaller one


def product(down: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Returns the product of two factors in a kernel's shape."""
    return down @ up.reshape(up.shape[-2:])
