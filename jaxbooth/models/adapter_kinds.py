"""The kinds of adapters: `KINDS` is the table of their formulas, and `LoraSpec` what all adapters of a run share."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np

from jaxbooth.models import loha, lokr, low_rank
from jaxbooth.models.loha import HADA_W1_A, HADA_W1_B, HADA_W2_A, HADA_W2_B
from jaxbooth.models.lokr import LOKR_W1, LOKR_W2, LOKR_W2_A, LOKR_W2_B, NEAREST
from jaxbooth.models.low_rank import LORA_A, LORA_B, Parts, Product, Shape
from jaxbooth.params import Array

MAGNITUDE = "lora_magnitude_vector.scale"  # DoRA's, of each output
AdapterKindName = Literal["lora", "dora", "loha", "lokr"]
LYCORIS_KINDS = ("loha", "lokr")  # in files of their own


class AdapterKind(NamedTuple):
    """The formulas of one kind, for one layer. `Parts` are its parameters, by the ends of their names.

    Attributes:
        title: as its authors write it.
        parts: that an adapter may have.
        shapes: kernel's shape, rank, factor -> part -> shape.
        initial: part, shape, generator -> float32 values that change nothing yet.
        apply: parts, inputs, product with a kernel -> what the change adds to the outputs, unscaled.
        kernel: parts -> the change in the kernel's shape, float32, unscaled.
        squared_norm: parts -> the squared Frobenius norm of `kernel`.
    """

    title: str
    parts: tuple[str, ...]
    shapes: Callable[[Shape, int, int], dict[str, Shape]]
    initial: Callable[[str, Shape, np.random.Generator], np.ndarray]
    apply: Callable[[Parts, Array, Product], Array]
    kernel: Callable[[Parts], Array]
    squared_norm: Callable[[Parts], Array]


LORA = AdapterKind(
    "LoRA", (LORA_A, LORA_B),
    low_rank.shapes, low_rank.initial, low_rank.apply, low_rank.kernel, low_rank.squared_norm,
)  # fmt: skip
KINDS: dict[str, AdapterKind] = {
    "lora": LORA,
    "dora": LORA._replace(title="DoRA", parts=(*LORA.parts, MAGNITUDE)),
    "loha": AdapterKind(
        "LoHa", (HADA_W1_A, HADA_W1_B, HADA_W2_A, HADA_W2_B),
        loha.shapes, loha.initial, loha.apply, loha.kernel, loha.squared_norm,
    ),
    "lokr": AdapterKind(
        "LoKr", (LOKR_W1, LOKR_W2, LOKR_W2_A, LOKR_W2_B),
        lokr.shapes, lokr.initial, lokr.apply, lokr.kernel, lokr.squared_norm,
    ),
}  # fmt: skip
PARTS = frozenset(part for kind in KINDS.values() for part in kind.parts)
# Where outputs (inputs) of a layer are cut or reordered, these parts' last (last but one) axis is the rank.
TAKING_IN = frozenset(part.removesuffix(".kernel") for part in (LORA_A, HADA_W1_B, HADA_W2_B, LOKR_W2_B))
GIVING_OUT = frozenset(part.removesuffix(".kernel") for part in (LORA_B, HADA_W1_A, HADA_W2_A, LOKR_W2_A))


class LoraSpec(NamedTuple):
    """What all adapters of a run share.

    Attributes:
        rank: width between a pair of factors.
        scale: alpha / rank, or alpha / sqrt(rank) for rsLoRA.
        kind: of KINDS.
        factor: LoKr's number of groups; NEAREST: as many as the groups are wide.
    """

    rank: int
    scale: float
    kind: AdapterKindName = "lora"
    factor: int = NEAREST

    @property
    def dora(self) -> bool:
        """Whether each output's magnitude is learned apart from its direction."""
        return self.kind == "dora"

    @property
    def formulas(self) -> AdapterKind:
        """The kind's formulas."""
        return KINDS[self.kind]

    def scale_of(self, parts: Iterable[str]) -> float:
        """Returns what multiplies the change of a layer that has these parts: 1 for a LoKr of two whole matrices."""
        return 1.0 if LOKR_W2 in parts else self.scale


def lora_spec(
    rank: int, alpha: float | None, rslora: bool, kind: AdapterKindName = "lora", factor: int = NEAREST
) -> LoraSpec:
    """Returns the shared settings; alpha defaults to the rank (rsLoRA: Kalajdzievski 2023, arXiv 2312.03732)."""
    return LoraSpec(rank, (alpha or rank) / (rank**0.5 if rslora else rank), kind, factor)


def adapted_layer(name: str) -> str | None:
    """Returns the layer that a parameter adapts; None: it is part of no adapter."""
    path, _, leaf = name.rpartition(".")
    layer, _, word = path.rpartition(".")
    return layer if f"{word}.{leaf}" in PARTS else None


def is_adapter(name: str) -> bool:
    """Whether a parameter is part of an adapter."""
    return adapted_layer(name) is not None
