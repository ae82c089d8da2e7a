"""Checkpoints in one file: which of its tensors becomes which of a diffusers folder's, whatever the layout.

A layout is a list of `SingleFileTensor`. `jaxbooth.weights.ldm` makes those of Stable Diffusion, and
`jaxbooth.weights.denoiser_file` those of files that hold a flow model's transformer alone.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.weights.diffusers_write import ComponentTensors
from jaxbooth.weights.names import without_ones
from jaxbooth.weights.other_models import OTHER_MODELS, OtherModel
from jaxbooth.weights.pickles import open_checkpoint
from jaxbooth.weights.safetensors_write import LazyTensor
from jaxbooth.weights.values import finite, weight_dtype

Shape = tuple[int, ...]
LISTED = 10  # tensors that an error names
DENOISER_PREFIX = r"(?:(?:model\.)?diffusion_model\.)?"  # of the denoiser's tensors, in the files of some programs


@dataclass(frozen=True)
class SingleFileTensor:
    """One tensor of a single file.

    Attributes:
        name: with its prefix.
        shape: in the single file.
        sources: state-dict names in the folder; several are stacked along the first axis, none is a constant.
        is_transposed: whether the single file holds the matrix the other way round.
        is_swapped: whether the two halves along the first axis change places.
        is_kernel: whether the single file holds the matrix as the kernel of a 1x1 convolution.
        is_placeholder: whether readers want it though no folder holds it; it is written and not read back.
    """

    name: str
    shape: Shape
    sources: tuple[str, ...]
    is_transposed: bool = False
    is_swapped: bool = False
    is_kernel: bool = False
    is_placeholder: bool = False

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Returns the single file's tensor from those of `sources`."""
        stacked = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        return self.rearrange(stacked).reshape(self.shape)

    def part(self, array: np.ndarray, source: str) -> np.ndarray:
        """Returns one of `sources` from the single file's tensor: the inverse of `join`."""
        rows = np.split(array, len(self.sources))[self.sources.index(source)]
        return self.rearrange(rows).reshape(self.source_shape)

    def rearrange(self, array: np.ndarray) -> np.ndarray:
        """Returns an array of a single source in the other order; doing it twice changes nothing."""
        array = array.T if self.is_transposed else array
        return np.concatenate(np.split(array, 2)[::-1]) if self.is_swapped else array

    @property
    def source_shape(self) -> Shape:
        """The shape of each of `sources`."""
        shape = self.shape[::-1] if self.is_transposed else self.shape
        return (shape[0] // len(self.sources), *(shape[1:2] if self.is_kernel else shape[1:]))


class Checkpoint:
    """An open single file whose tensors answer to the names of a layout.

    Attributes:
        tensors: the open safetensors file or pickle.
        stored: name in the layout -> name in the file.
    """

    def __init__(self, file: Path, allow_pickle: bool, rename: Callable[[str], str | None]):
        """Opens a file.

        Args:
            rename: name in the file -> name in the layout, or None for a tensor that nothing reads.
        """
        self.file = file
        self.tensors = open_checkpoint(file, allow_pickle)
        names: list[str] = self.tensors.keys()
        self.stored = {renamed: name for name in names if (renamed := rename(name))}

    def tensor(self, layout_tensor: SingleFileTensor, source: str, name: str) -> LazyTensor:
        """Returns the part of a tensor that becomes the folder's `source`, to be written as `name`.

        Raises:
            UserError: its shape is not the architecture's, or it holds something else than finite floats.
        """
        stored = self.stored[layout_tensor.name]
        shape = tuple(self.tensors.get_slice(stored).get_shape())
        if without_ones(shape) != without_ones(layout_tensor.shape):
            raise UserError(
                f"{self.file}: {stored} has shape {shape}, but this architecture asks for {layout_tensor.shape}; "
                "the file is of another model."
            )
        dtype = weight_dtype(self.tensors.get_slice(stored).get_dtype(), stored, self.file)

        def read() -> np.ndarray:
            return layout_tensor.part(finite(self.tensors.get_tensor(stored), stored, self.file), source)

        return LazyTensor(name, dtype, layout_tensor.source_shape, read)


def check_complete(checkpoint: Checkpoint, layout: Iterable[SingleFileTensor], denoiser: str, prefix: str = "") -> None:
    """Compares a file's names with those of the architecture.

    Args:
        denoiser: what messages call the network whose tensors must be those of the architecture and no others.
        prefix: of its tensors.

    Raises:
        UserError: tensors are missing, or the denoiser has some that the architecture lacks.
    """
    wanted = [tensor.name for tensor in layout if not tensor.is_placeholder]
    missing = sorted(set(wanted) - set(checkpoint.stored))
    if missing:
        raise UserError(
            f"{checkpoint.file} lacks {len(missing)} of {len(wanted)} tensors of its architecture "
            f"({list_tensors(missing)}); it is incomplete or of another model."
        )
    surplus = sorted(name for name in set(checkpoint.stored) - set(wanted) if name.startswith(prefix))
    if surplus:
        raise UserError(
            f"{checkpoint.file}: its {denoiser} has {len(surplus)} tensors that its architecture lacks "
            f"({list_tensors(surplus)}); it is of another model."
        )


def list_tensors(names: list[str]) -> str:
    """Returns the first names of a list, as a message shows them."""
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def to_lazy_tensor(component: ComponentTensors, tensor: SingleFileTensor) -> LazyTensor:
    """Returns a tensor of the single file, to be read from a component's folder when its turn comes."""
    dtype = component.dtype_of(tensor.sources[0])

    def read() -> np.ndarray:
        return tensor.join([component.written(source).astype(dtype) for source in tensor.sources])

    return LazyTensor(tensor.name, dtype, tensor.shape, read)


def any_matches(pattern: str, names: Iterable[str]) -> bool:
    """Whether one of the names begins as an expression says."""
    return any(re.match(pattern, name) for name in names)


def find_other_model(names: Sequence[str]) -> OtherModel | None:
    """Returns the refused model that a single file with tensors of these names is of, if it is of one."""
    for other in OTHER_MODELS:
        if other.tensor and any_matches(f"{DENOISER_PREFIX}(?:{other.tensor})", names):
            return other
    return None
