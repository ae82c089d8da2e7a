"""Writes a safetensors file one tensor at a time, so that no model has to fit in memory twice.

The bytes are those of `safetensors.numpy.save_file` (https://github.com/huggingface/safetensors#format): an eight-byte
length, the JSON header, and the tensors by descending dtype and then by name.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.storage.paths import short_name

DTYPES = {
    code: np.dtype(numpy_type)
    for code, numpy_type in {
        "I64": np.int64, "F64": np.float64, "F32": np.float32, "I32": np.int32, "BF16": ml_dtypes.bfloat16,
        "F16": np.float16, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
    }.items()
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}
ORDER = list(DTYPES.values())  # of the tensors in a file
ALIGNMENT = 8


@dataclass(frozen=True)
class LazyTensor:
    """A tensor to be written; `read` is called when its turn comes and returns something of this dtype and shape."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_tensors(path: Path, tensors: Iterable[LazyTensor], metadata: Mapping[str, str] | None) -> None:
    """Writes a safetensors file, which appears whole or not at all.

    Args:
        metadata: of the file's head; None is a file without.

    Raises:
        ValueError: a tensor's content is not what was announced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{short_name(path.name)}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write_to(file, tensors, metadata)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def write_to(file: BinaryIO, tensors: Iterable[LazyTensor], metadata: Mapping[str, str] | None) -> None:
    """Writes the content of a safetensors file."""
    ordered = sorted(tensors, key=lambda tensor: (ORDER.index(tensor.dtype), tensor.name))
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in ordered:
        end = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]
        }  # fmt: skip
        offset = end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    file.write(len(encoded).to_bytes(8, "little"))
    file.write(encoded)
    for tensor in ordered:
        content = np.asarray(tensor.read(), order="C")
        if content.dtype != tensor.dtype:
            raise ValueError(f"{tensor.name} is {content.dtype} and was announced as {tensor.dtype}")
        if content.shape != tensor.shape:
            raise ValueError(f"{tensor.name} has shape {content.shape} and was announced with {tensor.shape}")
        file.write(content.reshape(-1).view(np.uint8).data)


def stored_dtype(source: Any, name: str, file: Path) -> np.dtype:
    """Returns the dtype of a tensor in an open safetensors file.

    Raises:
        UserError: it is one that numpy cannot hold or that is no plain number (float8, 4-bit).
    """
    code = source.get_slice(name).get_dtype()
    if code not in DTYPES:
        raise UserError(f"{file}: {name} is {code}, which is not supported; use a float16, bfloat16 or float32 file.")
    return DTYPES[code]
