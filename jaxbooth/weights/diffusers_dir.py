"""One component of a diffusers folder: its safetensors, in and out.

Reading is slice by slice: each process reads the part of each tensor that its devices hold, so no host ever needs
room for the whole model. Writing follows the layout of the folder that the model came from (names, files, metadata,
buffers), which makes import followed by export reproduce an untouched model byte for byte.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxbooth.errors import UserError
from jaxbooth.params import AnyArray, Network, Params
from jaxbooth.weights.names import canonical, export_array, import_axes, parameter_names

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")  # folders that may hold weights
PLAIN_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # before variants such as fp16 beside them
Placement = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
Tick = Callable[[], object]  # called after each tensor


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise UserError(f"{path} does not hold a JSON object; download or export the model again.")
        return content
    except FileNotFoundError:
        raise UserError(f"{path} is missing; expected a Stable Diffusion model in diffusers layout.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download or export the model again.") from None


def open_tensors(path: Path) -> Any:
    """Opens a safetensors file for reading.

    Raises:
        UserError: the file is truncated or not safetensors.
    """
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); the file is damaged or incomplete, fetch it again."
        ) from None


def weight_files(folder: Path) -> dict[str, list[str]]:
    """Returns safetensors file name -> names of the tensors in it, in file order.

    Raises:
        UserError: there are no safetensors (a `.bin` is named with how to convert it), more than one set, or a shard
            that the index names is missing.
    """
    plain = [name for name in PLAIN_NAMES if (folder / name).exists()]
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if not plain and indices:
        shards = sorted(set(read_json(indices[0])["weight_map"].values()))
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


def match_names(stored: list[str], network: Network, folder: Path) -> dict[str, str]:
    """Returns stored tensor name -> parameter name; buffers are left out.

    Raises:
        UserError: the two sets of names differ; the message lists both differences.
    """
    expected = parameter_names(network.shapes)
    found = {name: today for name in stored if (today := canonical(name))}
    missing = sorted(set(expected) - set(found.values()))
    surplus = sorted(name for name, today in found.items() if today not in expected)
    if missing or surplus:
        parts = [f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
                 for what, names in (("missing", missing), ("unknown", surplus)) if names]  # fmt: skip
        raise UserError(f"{folder}: the tensors do not fit its config.json: {' and '.join(parts)}.")
    return {name: expected[today] for name, today in found.items()}


def load_component(
    folder: Path, network: Network, place: Placement, dtype: jax.typing.DTypeLike, tick: Tick = lambda: None
) -> Params:
    """Loads a component's parameters, each straight onto the devices that `place` gives it.

    Args:
        dtype: of matrices in memory, float32 for what is trained; vectors (biases, norm scales) are always float32.

    Raises:
        UserError: names or shapes differ from the configuration's, or a file is damaged.
    """
    files = weight_files(folder)
    names = match_names([name for stored in files.values() for name in stored], network, folder)
    params: Params = {}
    for file, stored in files.items():
        with open_tensors(folder / file) as tensors:
            for tensor in (name for name in stored if name in names):
                name = names[tensor]
                shape = network.shapes[name].shape
                kept = dtype if len(shape) > 1 else np.float32
                params[name] = load_tensor(tensors, tensor, name, shape, place, kept, folder)
                tick()
    return params


def load_tensor(
    tensors: Any, stored: str, name: str, shape: tuple[int, ...], place: Placement, dtype: Any, folder: Path
) -> jax.Array:
    """Reads one tensor shard by shard; the transpose is applied to the slice's index, so only that part is read."""
    source = tensors.get_slice(stored)
    axes = import_axes(name, len(shape))
    found = tuple(source.get_shape()[axis] for axis in axes)
    if found != shape:
        raise UserError(f"{folder}: {stored} has shape {found}, but the configuration asks for {shape}.")

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        there = tuple(index[axes.index(dimension)] for dimension in range(len(axes)))
        return np.asarray(source[there]).transpose(axes).astype(dtype)

    return jax.make_array_from_callback(shape, place(name, shape), read)


def save_component(params: Mapping[str, AnyArray], origin: Path, out: Path, dtype: np.dtype | None = None) -> None:
    """Writes a component's weights into the existing folder `out`, in the layout of `origin`.

    Args:
        params: parameter name -> array, on the devices or on the host.
        origin: the component folder that the model was loaded from.
        dtype: of the written tensors; None keeps each tensor's own of `origin`.
    """
    names = parameter_names(params)
    size = 0
    for file, stored in weight_files(origin).items():
        with open_tensors(origin / file) as tensors:
            written = dict(export_tensor(tensors, name, names, params, dtype) for name in stored)
            size += sum(tensor.nbytes for tensor in written.values())
            save_file(written, out / plain_name(file), metadata=tensors.metadata())
    for index in origin.glob("*.safetensors.index.json"):
        content = read_json(index)
        content["metadata"]["total_size"] = size
        content["weight_map"] = {name: plain_name(file) for name, file in content["weight_map"].items()}
        (out / plain_name(index.name)).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def plain_name(file: str) -> str:
    """Returns a weight file's name without its variant, so that readers find it without being told."""
    return re.sub(r"\.(fp16|bf16|non_ema)(?=[.-])", "", file)


def export_tensor(
    tensors: Any, stored: str, names: dict[str, str], params: Mapping[str, AnyArray], dtype: np.dtype | None
) -> tuple[str, np.ndarray]:
    """Returns the name and content under which one tensor of the original file is written again."""
    today = canonical(stored)
    if today is None:
        return stored, tensors.get_tensor(stored)
    name = names[today]
    kept = DTYPES[tensors.get_slice(stored).get_dtype()]
    is_bare_clip = stored.startswith(("embeddings.", "encoder.layers.", "final_layer_norm."))
    exported = f"text_model.{stored}" if is_bare_clip else stored  # readers before transformers 5 need the prefix
    with np.errstate(over="ignore"):  # an overflow to infinity is found when the export is verified
        return exported, export_array(name, np.asarray(params[name])).astype(dtype or kept)
