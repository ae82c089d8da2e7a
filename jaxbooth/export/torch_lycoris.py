"""LoHa and LoKr files on a PyTorch pipeline, added to its weights by LyCORIS' formulas as ComfyUI adds them.

diffusers has no reader for most of them. The formulas are written once more here, on the tensors of the file, so that
`--verify` compares two computations.
"""

from pathlib import Path
from typing import Any

from jaxbooth.base.model import BaseModel
from jaxbooth.weights.lora.names import adaptable_layers
from jaxbooth.weights.lora.write_lycoris import file_layers


def add_to_weights(pipe: Any, path: Path, base: BaseModel) -> None:
    """Adds the changes that a file describes to the weights of the pipeline's modules, in float32.

    Raises:
        KeyError: the file has tensors of no layer.
    """
    import torch
    from safetensors.torch import load_file

    tensors = load_file(path)
    for component in base.trainable_components():
        weights = dict(getattr(pipe, component).named_parameters())
        layers = file_layers(component, adaptable_layers(base.module(component)), base.denoiser_config)
        for layer, (name, is_swapped) in layers.items():
            names = [key for key in tensors if key.startswith(f"{name}.")]
            if not names:
                continue
            change = weight_change({key.removeprefix(f"{name}."): tensors.pop(key) for key in names})
            if is_swapped:
                change = torch.cat(change.chunk(2)[::-1])
            weight = weights.get(f"{layer}.weight", weights.get(f"text_model.{layer}.weight"))
            with torch.no_grad():
                weight += change.reshape(weight.shape)
    if tensors:
        raise KeyError(f"{path} has tensors of no layer, such as {min(tensors)}")


def weight_change(parts: dict[str, Any]) -> Any:
    """Returns the change of a weight, (out, in) or (out, in, height, width)."""
    import torch

    parts = {name: value.float() for name, value in parts.items()}
    alpha = parts["alpha"].item()
    if "hada_w1_a" in parts:
        halves = [parts[f"hada_w{index}_a"] @ parts[f"hada_w{index}_b"] for index in (1, 2)]
        return halves[0] * halves[1] * (alpha / len(parts["hada_w1_b"]))
    w1 = parts["lokr_w1"]
    if "lokr_w2" in parts:
        w2 = parts["lokr_w2"]
        return torch.kron(w1.reshape(*w1.shape, *(1,) * (w2.ndim - 2)), w2)
    return torch.kron(w1, parts["lokr_w2_a"] @ parts["lokr_w2_b"]) * (alpha / len(parts["lokr_w2_b"]))
