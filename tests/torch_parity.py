"""Moving arrays and weights between jaxbooth and PyTorch, for comparisons."""

from collections.abc import Mapping

import numpy as np
import torch

from jaxbooth.params import ModuleDef
from jaxbooth.weights.names import RENAMED_ON_IMPORT, Renames, canonical, import_axes, parameter_names

TOLERANCE = 2e-5  # relative to the output's scale: float32 sums in another order differ by a few units in 1e-6


def params_from_torch(
    module: torch.nn.Module, network: ModuleDef, renames: Renames = RENAMED_ON_IMPORT
) -> dict[str, np.ndarray]:
    """Applies the leaf rule to a PyTorch module's state dict; the two sets of names must be equal."""
    names = parameter_names(network.shapes)
    state = {canonical(key, renames): value.detach().float().numpy() for key, value in module.state_dict().items()}
    state.pop(None, None)
    assert set(state) == set(names)
    return {names[key]: value.transpose(import_axes(names[key], value.ndim)) for key, value in state.items()}


def to_torch(array: np.ndarray) -> torch.Tensor:
    """NHWC to NCHW."""
    return torch.from_numpy(np.array(array)).permute(0, 3, 1, 2).contiguous()


def from_torch(tensor: torch.Tensor) -> np.ndarray:
    """NCHW to NHWC."""
    return tensor.detach().permute(0, 2, 3, 1).numpy()


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the expected output's largest magnitude."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


def torch_state(params: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Returns a state dict of jaxbooth parameters."""
    from jaxbooth.weights.names import export_array, torch_name

    return {torch_name(name): torch.from_numpy(export_array(name, np.array(value))) for name, value in params.items()}
