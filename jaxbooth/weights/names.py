"""The leaf rule: how a parameter's name and layout relate to PyTorch's. There is no mapping table.

Module attributes carry the state dict's names, so only the last word differs (kernel, scale and embedding are all
`weight` to torch) and kernels are transposed: Linear (out, in) <-> (in, out), Conv2d OIHW <-> HWIO.
"""

import re
from collections.abc import Iterable

import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # others are called the same
Renames = tuple[tuple[str, str], ...]

# The known exceptions, applied to names on import. What has an empty replacement is no parameter, or of no use.
RENAMED_ON_IMPORT = (
    (r"text_model\.(.*)", r"\1"),
    (r"(.*\.attentions\.0)\.query\.(\w+)", r"\1.to_q.\2"),
    (r"(.*\.attentions\.0)\.key\.(\w+)", r"\1.to_k.\2"),
    (r"(.*\.attentions\.0)\.value\.(\w+)", r"\1.to_v.\2"),
    (r"(.*\.attentions\.0)\.proj_attn\.(\w+)", r"\1.to_out.0.\2"),
    (r"embeddings\.position_ids", r""),
    (r"bn\.num_batches_tracked", r""),
    (r"model\.(embed_tokens|layers|norm)\.(.*)", r"\1.\2"),  # of `Qwen3ForCausalLM`
    (r"lm_head\.weight", r""),
)
RENAMED_IN_CLIP_MODELS = (
    (r"(text|vision)_model\.embeddings\.position_ids", r""),
    (r"logit_scale", r""),
)
# DINO and DINOv2: `ViTModel` of transformers 5, then words of ViT, then of files older than transformers 5.
RENAMED_IN_VISION_TRANSFORMERS = (
    (r"layers\.(.*)", r"encoder.layer.\1"),
    (r"(.*)\.layernorm_before\.(\w+)", r"\1.norm1.\2"),
    (r"(.*)\.layernorm_after\.(\w+)", r"\1.norm2.\2"),
    (r"(.*)\.intermediate\.dense\.(\w+)", r"\1.mlp.fc1.\2"),
    (r"(.*\.layer\.\d+)\.output\.dense\.(\w+)", r"\1.mlp.fc2.\2"),
    (r"(.*)\.attention\.attention\.query\.(\w+)", r"\1.attention.q_proj.\2"),
    (r"(.*)\.attention\.attention\.key\.(\w+)", r"\1.attention.k_proj.\2"),
    (r"(.*)\.attention\.attention\.value\.(\w+)", r"\1.attention.v_proj.\2"),
    (r"(.*)\.attention\.(?:output\.dense|o_proj)\.(\w+)", r"\1.attention.out_proj.\2"),
    (r"pooler\..*|embeddings\.mask_token", r""),
)


def torch_name(name: str) -> str:
    """Returns the state-dict name of a parameter."""
    head, _, leaf = name.rpartition(".")
    return f"{head}.{LEAVES.get(leaf, leaf)}".removeprefix(".")


def canonical(stored: str, renames: Renames = RENAMED_ON_IMPORT) -> str | None:
    """Returns today's state-dict name of a stored tensor, or None for one that is no parameter."""
    for pattern, replacement in renames:
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


def torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a parameter's shape in torch's layout."""
    return tuple(shape[axis] for axis in np.argsort(import_axes(name, len(shape))))


def without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a torch shape less the last dimensions of a 1x1 kernel: a matrix holds the same numbers."""
    return shape[:2] if shape[2:] in ((1,), (1, 1)) else shape


def export_array(name: str, value: np.ndarray) -> np.ndarray:
    """Returns the parameter in torch's layout, contiguous: the inverse of `import_axes`."""
    return np.ascontiguousarray(value.transpose(np.argsort(import_axes(name, value.ndim))))


def published_path(component: str, module: str) -> str:
    """Returns the path of a module or a tensor as files have it.

    A text encoder's begin with `text_model.`, which readers before transformers 5 need and later ones accept.
    """
    is_inner = component.startswith("text_encoder") and not module.startswith("text_projection")
    return f"text_model.{module}" if is_inner else module
