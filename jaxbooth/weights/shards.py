"""A component's weights in several files, none of which is above a size, and their index, as diffusers saves them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxbooth.storage.files import write_text
from jaxbooth.weights.safetensors_write import LazyTensor, write_tensors

MAX_BYTES = 10 * 10**9  # of a file; the default of diffusers


def split(tensors: Iterable[LazyTensor], limit: int) -> list[list[LazyTensor]]:
    """Returns the tensors of each file, in huggingface_hub's way.

    They fill a file in their order until it is full; one that is above the limit lies in a file of its own.
    """
    files: list[list[LazyTensor]] = []
    current: list[LazyTensor] = []
    for tensor in tensors:
        if tensor.nbytes > limit:
            files.append([tensor])
            continue
        if sum(other.nbytes for other in current) + tensor.nbytes > limit:
            files.append(current)
            current = []
        current.append(tensor)
    return [*files, current] if current else files


def write_shards(
    path: Path, tensors: Iterable[LazyTensor], metadata: Mapping[str, str] | None, limit: int = MAX_BYTES
) -> None:
    """Writes weights to a safetensors file, or to several beside it and their index where one would be too large.

    Args:
        path: of the one file; `model.safetensors` becomes `model-00001-of-00002.safetensors` and so on.
        metadata: of each file's head.
        limit: bytes of tensors in a file.
    """
    files = split(tensors, limit)
    if len(files) <= 1:
        write_tensors(path, files[0] if files else [], metadata)
        return
    weight_map = {}
    for number, content in enumerate(files, 1):
        name = f"{path.stem}-{number:05d}-of-{len(files):05d}{path.suffix}"
        write_tensors(path.with_name(name), content, metadata)
        weight_map |= {tensor.name: name for tensor in content}
    total = sum(tensor.nbytes for content in files for tensor in content)
    write_weight_map(path.with_name(f"{path.name}.index.json"), weight_map, total)


def write_weight_map(
    path: Path, weight_map: Mapping[str, str], total_size: int, content: Mapping[str, Any] | None = None
) -> None:
    """Writes the index of a component in several files.

    Args:
        weight_map: tensor -> the file that it is in.
        total_size: bytes of all tensors.
        content: of the index that it takes the place of, whose other entries are kept.
    """
    content = content or {}
    metadata = content.get("metadata")
    kept = metadata if isinstance(metadata, dict) else {}
    index = {**content, "metadata": {**kept, "total_size": total_size}, "weight_map": dict(weight_map)}
    write_text(path, json.dumps(index, indent=2, sort_keys=True) + "\n")
