"""Pickled PyTorch weights (`.ckpt`, `.pt`, `.bin`), in. This is the only reader that needs PyTorch.

A pickle can run code when it is opened, so the user has to ask for it, and PyTorch is told to accept nothing but
tensors and plain containers.
"""

import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxbooth.errors import UserError, short_repr
from jaxbooth.storage.text import MAX_REASON
from jaxbooth.weights.diffusers_read import open_tensors
from jaxbooth.weights.safetensors_write import CODES, LazyTensor, stored_dtype, write_tensors

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
ADVICE = re.compile(r"\. (?:In PyTorch 2\.6|This file can still be loaded)")  # of PyTorch, to run the code after all
MAX_NESTED = 4  # dictionaries around the tensors; PyTorch Lightning has one


def open_checkpoint(file: Path, allow_pickle: bool) -> Any:
    """Opens a weight file for reading; a pickle answers to the calls of `safetensors.safe_open` that are used here.

    Raises:
        UserError: the file is missing or damaged, or a pickle that was not asked for.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist; expected a .safetensors checkpoint.")
    if file.suffix.lower() not in PICKLES:
        return open_tensors(file)
    if not allow_pickle:
        raise UserError(
            f"{file} is a pickle, which can run code when it is opened; pass --allow-pickle if you trust where it "
            "comes from, or use a .safetensors file."
        )
    return PickledTensors(load_pickle(file), file)


def convert_pickle(bin_file: Path, out: Path) -> None:
    """Writes one of a component's `.bin` files as safetensors.

    Raises:
        UserError: the file is damaged, or holds more than tensors.
    """
    source = PickledTensors(load_pickle(bin_file), bin_file)
    tensors = [
        LazyTensor(name, stored_dtype(source, name, bin_file), tuple(value.shape), partial(source.get_tensor, name))
        for name, value in source.state.items()
    ]
    write_tensors(out, tensors, {"format": "pt"})


class PickledTensors:
    """The tensors of a state dict, read as numpy arrays.

    Raises:
        UserError: one of them is not a plain tensor with all of its values in the file.
    """

    def __init__(self, state: Mapping[Any, Any], file: Path):
        self.state = {name: value.detach() for name, value in state.items() if hasattr(value, "untyped_storage")}
        for name, value in self.state.items():
            if not isinstance(name, str) or not is_plain(value):
                raise UserError(
                    f"{file}: {short_repr(name)} is not a plain tensor with a name and all of its values in the file "
                    "(but sparse, quantized, repeated or without values); use a .safetensors file."
                )

    def keys(self) -> list[str]:
        """Returns the tensors' names."""
        return list(self.state)

    def metadata(self) -> dict[str, str]:
        """A pickle has none."""
        return {}

    def get_slice(self, name: str) -> "PickledSlice":
        """Returns what is known of a tensor before it is read."""
        return PickledSlice(self.state[name])

    def get_tensor(self, name: str) -> np.ndarray:
        """Reads a tensor; bfloat16 passes as its bits, since numpy has that type from ml_dtypes only."""
        import torch

        tensor = self.state[name].contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


class PickledSlice:
    """Shape and dtype of a pickled tensor, as safetensors gives them."""

    def __init__(self, tensor: Any):
        self.dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        self.shape = tuple(tensor.shape)

    def get_shape(self) -> tuple[int, ...]:
        """Returns the shape."""
        return self.shape

    def get_dtype(self) -> str:
        """Returns safetensors' word for the dtype (F32), or torch's for one that jaxbooth does not read."""
        return CODES.get(self.dtype, self.dtype.name)


def load_pickle(file: Path) -> dict[str, Any]:
    """Returns the state dict in a pickle, mapped from the disk where its format allows that.

    Raises:
        UserError: PyTorch is not installed, or the file is damaged or holds code.
    """
    try:
        import torch
    except ImportError:
        raise UserError(f"{file} can be read by PyTorch only; run `pip install 'jaxbooth[torch]'`.") from None
    lightning = (Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")  # in CompVis' own checkpoints
    try:
        with torch.serialization.safe_globals([lightning]):
            zipped = zipfile.is_zipfile(file)  # PyTorch 1.6 and later; what is older cannot be mapped
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # a pickle is a program, and what it does to the unpickler's stack is its own affair
        said = str(error).strip() or type(error).__name__
        reason = ADVICE.split(said.splitlines()[0])[0][:MAX_REASON]
        raise UserError(
            f"{file} cannot be read ({reason}); it is damaged or holds more than tensors, use a .safetensors file."
        ) from None
    for _ in range(MAX_NESTED):
        if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
            break
        state = state["state_dict"]
    else:
        raise UserError(f"{file} holds a state_dict within a state_dict, and so on; use a .safetensors file.")
    if not isinstance(state, dict):
        raise UserError(f"{file} holds a {type(state).__name__}; expected a dictionary of tensors.")
    return state


def is_plain(tensor: Any) -> bool:
    """Whether a tensor is dense, lies in memory, and has as many stored values as it shows."""
    import torch

    if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


class Inert:
    """Stands in for a class that is never used."""
