"""What the parameters of an export should be, worked out one at a time to compare the written ones with.

Adapters are added by numpy in float64 here, where the writer merges them on the devices in float32.
"""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from jaxbooth.export.format import Export
from jaxbooth.models.lora import LORA_A, LORA_B, MAGNITUDE
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
        layer, trained = name.removesuffix(".kernel"), self.trained.get(component, {})
        names = {part: f"{layer}.{part}" for part in (LORA_A, LORA_B, MAGNITUDE)}
        return {part: trained[full_name] for part, full_name in names.items() if full_name in trained}

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
            value = add_adapter(value, adapter, self.base.lora.scale)
        with np.errstate(over="ignore"):  # an overflow to infinity is found when the export is verified
            return value.astype(self.dtype(component, name))


def add_adapter(kernel: np.ndarray, adapter: Mapping[str, AnyArray], scale: float) -> np.ndarray:
    """Returns W + scale A B, with DoRA's magnitudes in place of the outputs' norms; float64."""
    parts = {part: np.asarray(value, np.float64) for part, value in adapter.items()}
    lora_b = parts[LORA_B].reshape(parts[LORA_B].shape[-2:])
    total = kernel.astype(np.float64) + scale * (parts[LORA_A] @ lora_b)
    if MAGNITUDE in parts:
        total *= parts[MAGNITUDE] / np.sqrt(np.square(total).sum(axis=tuple(range(total.ndim - 1))))
    return total
