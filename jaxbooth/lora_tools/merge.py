"""Several LoRAs as one: their weighted sum, exact, because the ranks stand side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import KINDS
from jaxbooth.weights.lora.adapters import Adapter, LoraWeights, from_adapters, to_adapters
from jaxbooth.weights.lora.lycoris import kind_of


class WeightedFile(NamedTuple):
    """A LoRA file and what its change is multiplied by."""

    path: Path
    weight: float


def merge_loras(files: Sequence[WeightedFile], loras: Sequence[LoraWeights]) -> LoraWeights:
    """Returns the LoRA whose change of every layer is the weighted sum of the files': A above A, B beside B.

    Args:
        loras: what the files hold.

    Raises:
        UserError: one of them is no plain LoRA.
    """
    parts: dict[tuple[str, str], list[Adapter]] = {}
    for (path, weight), lora in zip(files, loras, strict=True):
        check_plain(path, lora)
        for adapter in to_adapters(lora):
            scale = np.float32(weight * adapter.alpha / adapter.rank)
            unscaled = adapter._replace(lora_b=adapter.lora_b * scale, alpha=float(adapter.rank))
            parts.setdefault((adapter.component, adapter.module), []).append(unscaled)
    return from_adapters(side_by_side(parts[key]) for key in sorted(parts))


def check_plain(path: Path, lora: LoraWeights) -> None:
    """Refuses what is no sum of products.

    Raises:
        UserError: the message says what can be done instead.
    """
    kind = kind_of(lora)
    if kind == "lora":
        return
    if kind == "dora":
        raise UserError(
            f"{path} is a DoRA: its magnitudes belong to one change of the weights and are neither added nor resized; "
            "export it as a whole model and extract a LoRA from that (`jaxbooth lora extract`)."
        )
    raise UserError(
        f"{path} is a {KINDS[kind].title}, whose sum with others is none; make a LoRA of it first with "
        "`jaxbooth lora resize FILE --rank R`, which tells the error."
    )


def side_by_side(adapters: Sequence[Adapter]) -> Adapter:
    """Returns the sum of one layer's adapters, each of which has alpha = rank."""
    return adapters[0]._replace(
        lora_a=np.concatenate([adapter.lora_a for adapter in adapters]),
        lora_b=np.concatenate([adapter.lora_b for adapter in adapters], axis=1),
        alpha=float(sum(adapter.rank for adapter in adapters)),
    )
