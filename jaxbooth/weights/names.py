"""The leaf rule: how a parameter's name and layout relate to PyTorch's. There is no mapping table.

Module attributes carry the state dict's names, so only the last word differs (kernel, scale and embedding are all
`weight` to torch) and kernels are transposed: Linear (out, in) <-> (in, out), Conv2d OIHW <-> HWIO.
"""

import re
from collections.abc import Iterable

import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}

# The known exceptions, applied to names on import. Buffers (an empty replacement) hold no parameters.
RENAMED_ON_IMPORT = (
    (r"text_model\.(.*)", r"\1"),
    (r"(.*\.attentions\.0)\.query\.(\w+)", r"\1.to_q.\2"),
    (r"(.*\.attentions\.0)\.key\.(\w+)", r"\1.to_k.\2"),
    (r"(.*\.attentions\.0)\.value\.(\w+)", r"\1.to_v.\2"),
    (r"(.*\.attentions\.0)\.proj_attn\.(\w+)", r"\1.to_out.0.\2"),
    (r"embeddings\.position_ids", r""),
)


def torch_name(name: str) -> str:
    """Returns the state-dict name of a parameter."""
    head, _, leaf = name.rpartition(".")
    return f"{head}.{LEAVES[leaf]}"


def canonical(stored: str) -> str | None:
    """Returns today's state-dict name of a stored tensor, or None for a buffer that is no parameter."""
    for pattern, replacement in RENAMED_ON_IMPORT:
        match = re.fullmatch(pattern, stored)
        if match:
            stored = match.expand(replacement)
    return stored or None


def parameter_names(names: Iterable[str]) -> dict[str, str]:
    """Returns state-dict name -> parameter name."""
    return {torch_name(name): name for name in names}


def import_axes(name: str, ndim: int) -> tuple[int, ...]:
    """Returns the transpose that turns the stored tensor into the parameter."""
    if name.endswith(".kernel") and ndim == 2:
        return (1, 0)
    if name.endswith(".kernel") and ndim == 4:
        return (2, 3, 1, 0)
    return tuple(range(ndim))


def export_array(name: str, value: np.ndarray) -> np.ndarray:
    """Returns the parameter in torch's layout, contiguous: the inverse of `import_axes`."""
    return np.ascontiguousarray(value.transpose(np.argsort(import_axes(name, value.ndim))))
