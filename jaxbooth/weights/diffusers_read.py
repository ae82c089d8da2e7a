"""One component of a diffusers folder, in: which of its files hold its weights, and those weights on the devices.

Reading is slice by slice: each process reads the part of each tensor that its devices hold, so no host ever needs
room for the whole model.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxbooth.errors import UserError
from jaxbooth.models.quantization import Quantization, quantized_kernels
from jaxbooth.params import ModuleDef, Params
from jaxbooth.storage.paths import ascii_repr, plain_file_name
from jaxbooth.storage.text import read_json
from jaxbooth.weights.names import (
    RENAMED_ON_IMPORT,
    Renames,
    canonical,
    import_axes,
    parameter_names,
    torch_shape,
    without_ones,
)
from jaxbooth.weights.quantized_load import quantize_param
from jaxbooth.weights.values import finite, weight_dtype

STEM = "(?:diffusion_pytorch_model|pytorch_model|model)"
# `model.fp16-00001-of-00002.safetensors` with `model.safetensors.index.fp16.json`; early files have the variant last.
WEIGHTS = re.compile(
    STEM + r"(?:\.(?P<variant>\w+))?(?P<shard>-\d+-of-\d+)?(?:\.(?P<last>\w+))?\.(?P<kind>safetensors|bin)"
)
INDEX = re.compile(
    STEM + r"\.(?P<kind>safetensors|bin)(?:\.(?P<last>\w+))?(?P<shard>\.index)(?:\.(?P<variant>\w+))?\.json"
)
PLAIN_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # before variants such as fp16 beside them
Placement = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
Tick = Callable[[], object]  # called after each tensor
LISTED, MAX_NAME = 3, 60  # tensors that a message names, and characters of each
MAX_REASON = 200  # characters of the library's message


def open_tensors(path: Path) -> Any:
    """Opens a safetensors file for reading.

    Raises:
        UserError: the file is truncated or not safetensors, or no file at all.
    """
    if path.exists() and not path.is_file():  # opening a FIFO would wait for ever
        raise UserError(f"{path} is not a file; name a safetensors file, or put one in its place.")
    try:
        path.open("rb").close()  # of a file that may not be read, safetensors says that it is not there
        return safe_open(path, framework="np")
    except PermissionError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); change its permissions.") from None
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); the file is damaged or incomplete, fetch it again."
        ) from None


def variant_of(name: str) -> str:
    """Returns the variant (fp16, non_ema) in a weight file's or an index's name, or an empty string."""
    match = WEIGHTS.fullmatch(name) or INDEX.fullmatch(name)
    return (match["variant"] or match["last"] or "") if match else ""


def plain_name(name: str) -> str:
    """Returns the name of a weight file or an index without its variant, so that readers find it without being told."""
    variant = variant_of(name)
    return name.replace(f".{variant}", "", 1) if variant else name


def index_file(folder: Path) -> Path | None:
    """Returns the index of a component in several files; a plain single file makes an index superfluous."""
    if any((folder / name).exists() for name in PLAIN_NAMES):
        return None
    return next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)


def read_weight_map(index: Path) -> dict[str, str]:
    """Returns tensor -> plain name of the file that holds it, from the index of a component in several files.

    Raises:
        UserError: the index has no such map, or names a file outside of its folder.
    """
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{index} has no weight_map of tensors to files; fetch the model again.")
    return {tensor: plain_file_name(file, str(index)) for tensor, file in shards.items()}


def weight_files(folder: Path) -> dict[str, list[str]]:
    """Returns safetensors file name -> names of the tensors in it, in file order.

    Raises:
        UserError: there are no safetensors (a `.bin` is named with how to convert it), more than one set, or the index
            names a shard that is missing or would lie outside of the folder.
    """
    plain = [name for name in PLAIN_NAMES if (folder / name).exists()]
    index = index_file(folder)
    if index:
        shards = sorted(set(read_weight_map(index).values()))
    else:
        shards = plain or sorted(path.name for path in folder.glob("*.safetensors"))
        if len(shards) > 1:
            raise UserError(f"{folder} holds several weight files ({', '.join(shards)}); leave the one to use.")
    if not shards:
        pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.msgpack"))
        if pickles:
            raise UserError(
                f"{pickles[0]} is not safetensors; set --allow-pickle for .bin, or convert it in PyTorch with "
                "`DiffusionPipeline.from_pretrained(folder).save_pretrained(new_folder)` and use the new folder."
            )
        raise UserError(f"{folder} holds no .safetensors file; expected a model in diffusers layout.")
    files = {}
    for shard in shards:
        if not (folder / shard).exists():
            raise UserError(f"{folder / shard} is missing, though the index names it; fetch the model again.")
        with open_tensors(folder / shard) as file:
            files[shard] = list(file.keys())
    return files


def list_names(names: list[str]) -> str:
    """Returns the first names of a list, as a message shows them."""
    listed = ", ".join(name if len(name) <= MAX_NAME else f"{name[:MAX_NAME]}..." for name in names[:LISTED])
    return f"{listed}, ..." if len(names) > LISTED else listed


def match_names(
    stored: list[str], network: ModuleDef, folder: Path, renames: Renames = RENAMED_ON_IMPORT
) -> dict[str, str]:
    """Returns stored tensor name -> parameter name; buffers are left out.

    Raises:
        UserError: the two sets of names differ; the message lists both differences. Or a tensor is there twice.
    """
    expected = parameter_names(network.shapes)
    names = {name: today for name in stored if (today := canonical(name, renames))}
    twice = next((today for today, number in Counter(names.values()).items() if number > 1), None)
    if twice:
        raise UserError(f"{folder} holds the tensor {ascii_repr(twice)} twice, under two names; fetch another copy.")
    missing = sorted(set(expected) - set(names.values()))
    surplus = sorted(name for name, today in names.items() if today not in expected)
    if missing or surplus:
        parts = [f"{len(listed)} {problem} ({list_names(listed)})"
                 for problem, listed in (("missing", missing), ("unknown", surplus)) if listed]  # fmt: skip
        raise UserError(f"{folder}: the tensors do not fit its config.json: {' and '.join(parts)}.")
    return {name: expected[today] for name, today in names.items()}


def find_tensors(folder: Path, network: ModuleDef, renames: Renames = RENAMED_ON_IMPORT) -> dict[str, dict[str, str]]:
    """Returns file -> stored tensor name -> parameter name, once the heads of a component's files fit its structure.

    No weight is read and nothing is allocated, whatever the configuration asks for.

    Raises:
        UserError: names, shapes or dtypes differ from the configuration's, or a file is damaged.
    """
    files = weight_files(folder)
    names = match_names([name for stored in files.values() for name in stored], network, folder, renames)
    tensors_of: dict[str, dict[str, str]] = {}
    for file, stored in files.items():
        tensors_of[file] = {tensor: names[tensor] for tensor in stored if tensor in names}
        with open_tensors(folder / file) as tensors:
            for tensor, name in tensors_of[file].items():
                source = tensors.get_slice(tensor)
                weight_dtype(source.get_dtype(), tensor, folder / file)
                check_shape(folder, tensor, tuple(source.get_shape()), torch_shape(name, network.shapes[name].shape))
    return tensors_of


def check_shape(folder: Path, tensor: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Refuses another shape than the structure's, both in PyTorch's layout; a matrix may be a 1x1 kernel.

    Raises:
        UserError: the message names the tensor.
    """
    if without_ones(shape) != without_ones(expected):
        raise UserError(f"{folder}: {ascii_repr(tensor)} has shape {shape}, but the configuration asks for {expected}.")


def load_component(
    folder: Path,
    network: ModuleDef,
    place: Placement,
    dtype: jax.typing.DTypeLike,
    tick: Tick = lambda: None,
    renames: Renames = RENAMED_ON_IMPORT,
    quantization: Quantization = "none",
) -> Params:
    """Loads a component's parameters, each straight onto the devices that `place` gives it.

    Args:
        dtype: of matrices in memory, float32 for what is trained; vectors (biases, norm scales) are always float32.
        renames: names of the files that are others today.
        quantization: of the kernels that `quantized_kernels` names.

    Raises:
        UserError: see `find_tensors`; or a value is not finite.
    """
    params: Params = {}
    quantized = frozenset(quantized_kernels(network.shapes, quantization))
    for file, names in find_tensors(folder, network, renames).items():
        with open_tensors(folder / file) as tensors:
            for tensor, name in names.items():
                shape = network.shapes[name].shape
                kept = dtype if len(shape) > 1 and name not in quantized else np.float32
                value = load_tensor(tensors, tensor, name, shape, place, kept, folder / file)
                params |= quantize_param(name, value, place, quantization) if name in quantized else {name: value}
                tick()
    return params


def load_tensor(
    tensors: Any, stored: str, name: str, shape: tuple[int, ...], place: Placement, dtype: Any, path: Path
) -> jax.Array:
    """Reads one tensor shard by shard; the transpose is applied to the slice's index, so only that part is read.

    Raises:
        UserError: a value is not finite.
    """
    source, axes = tensors.get_slice(stored), import_axes(name, len(shape))
    rank = len(source.get_shape())

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        there = [index[axes.index(dimension)] for dimension in range(len(axes))]
        there += [slice(None)] * (rank - len(there))  # of a 1x1 kernel where a matrix is wanted
        values = finite(np.asarray(source[tuple(there[:rank])]), stored, path)
        return to_parameter(name, values, len(shape)).astype(dtype)

    return jax.make_array_from_callback(shape, place(name, shape), read)


def to_parameter(name: str, values: np.ndarray, ndim: int) -> np.ndarray:
    """Returns a stored tensor in the layout of the parameter of that name; matrices and 1x1 kernels are the same.

    Args:
        ndim: dimensions of the parameter.
    """
    values = values if values.ndim == ndim else values.reshape(*values.shape[:2], *(1,) * (ndim - 2))
    return values.transpose(import_axes(name, ndim))


class StoredParameters:
    """The parameters in a component's files, read one at a time on the host and kept in their stored dtype.

    Attributes:
        tensors: parameter name -> file, and the tensor's name in it.

    Raises:
        UserError: see `find_tensors`.
    """

    def __init__(self, folder: Path, module: ModuleDef):
        self.folder, self.module = folder, module
        names = find_tensors(folder, module)
        self.files = {file: open_tensors(folder / file) for file in names}
        self.tensors = {name: (file, tensor) for file, tensors in names.items() for tensor, name in tensors.items()}

    def stored_shape(self, name: str) -> tuple[int, ...]:
        """Returns a parameter's shape in the file, in PyTorch's layout."""
        file, tensor = self.tensors[name]
        return tuple(self.files[file].get_slice(tensor).get_shape())

    def dtype(self, name: str) -> np.dtype:
        """Returns a parameter's dtype in the file."""
        file, tensor = self.tensors[name]
        return weight_dtype(self.files[file].get_slice(tensor).get_dtype(), tensor, self.folder / file)

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads a parameter."""
        file, tensor = self.tensors[name]
        return to_parameter(name, self.files[file].get_tensor(tensor), len(self.module.shapes[name].shape))
