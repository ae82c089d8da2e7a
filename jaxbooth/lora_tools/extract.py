"""A LoRA that turns one model into another: the nearest to the difference of every kernel, by singular values.

Kernels are read layer by layer from both models, so that neither has to fit in memory.
"""

from typing import NamedTuple

import numpy as np

from jaxbooth.base.model import BaseModel
from jaxbooth.console.progress import progress
from jaxbooth.errors import UserError
from jaxbooth.lora_tools.resize import as_adapter
from jaxbooth.lora_tools.svd import LayerError, truncate
from jaxbooth.params import ModuleDef
from jaxbooth.weights.diffusers_read import StoredParameters
from jaxbooth.weights.lora.adapters import Adapter, LoraWeights, from_adapters
from jaxbooth.weights.names import export_array


class Extracted(NamedTuple):
    """What was found.

    Attributes:
        errors: of every layer that has an adapter.
        lost: names of parameters that differ and are no kernels, which a LoRA cannot change.
    """

    lora: LoraWeights
    errors: list[LayerError]
    lost: list[str]


def extract_lora(model: BaseModel, base: BaseModel, rank: int) -> Extracted:
    """Returns the LoRA of at most `rank` that is nearest to `model` minus `base`, with alpha = rank.

    Layers without a difference get no adapter.

    Raises:
        UserError: the models are of different architectures, or they are equal.
    """
    adapters, errors, lost = [], [], []
    for component in base.trainable_components():
        module = base.module(component)
        check_same_shapes(component, model, module)
        ours = StoredParameters(model.folder / component, module)
        theirs = StoredParameters(base.folder / component, module)
        with progress(f"extract from the {component}", len(module.shapes)) as bar:
            for name in sorted(module.shapes):
                bar.advance()
                change = ours[name].astype(np.float32) - theirs[name].astype(np.float32)
                if not change.any():
                    continue
                if not name.endswith(".kernel"):
                    lost.append(f"{component}.{name}")
                    continue
                adapter, error = layer_adapter(component, name, change, rank)
                adapters.append(adapter)
                errors.append(error)
    if not adapters:
        raise UserError(f"{model.folder} and {base.folder} have the same weights in every layer; nothing to extract.")
    return Extracted(from_adapters(adapters), errors, lost)


def layer_adapter(component: str, name: str, change: np.ndarray, rank: int) -> tuple[Adapter, LayerError]:
    """Returns a kernel's adapter and what it leaves out.

    Args:
        change: of the kernel, in jaxbooth's layout.
    """
    weight = export_array(name, change)
    factors = truncate(weight.reshape(len(weight), -1), rank)
    layer = name.removesuffix(".kernel")
    adapter = as_adapter(component, layer, factors, weight.shape[1:])
    return adapter, LayerError(f"{component}.{layer}", factors.squared_error, factors.squared_norm)


def check_same_shapes(component: str, model: BaseModel, module: ModuleDef) -> None:
    """Refuses two models whose components differ in more than values.

    Raises:
        UserError: the message names a layer.
    """
    own = model.module(component).shapes if component in model.trainable_components() else {}
    different = [name for name in sorted({*own, *module.shapes}) if own.get(name) != module.shapes.get(name)]
    if different:
        raise UserError(
            f"the {component} of {model.folder} is not of the architecture of --base ({different[0]} differs); name "
            "the model that it was trained from."
        )
