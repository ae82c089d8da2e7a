"""What an export should hold, worked out one tensor at a time, for `jaxbooth.export.verify` to compare with.

Worked out anew are the parameters with adapters (added by numpy in float64, where the writer merges on the devices),
the shapes in a folder (from the networks) and which tensors belong into which file. Shared with the writer, so that a
mistake in them would be on both sides, are how a file's tensors are found and named (`ComponentTensors`), the layouts
(`names`, `ldm_layout`), `constant` and the names of embedding files: `--verify` opens the export in PyTorch for those.
The cast and everything that happens on the way to the disk and back is behind the comparison.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.export.export import without_embeddings
from jaxbooth.models.lora import LORA_A, LORA_B, MAGNITUDE
from jaxbooth.params import AnyArray, Params
from jaxbooth.weights.component import ComponentTensors
from jaxbooth.weights.diffusers_read import match_names, plain_name, weight_files
from jaxbooth.weights.diffusers_write import DTYPES, ExportDtype, ExportFormat
from jaxbooth.weights.embeddings import embedding_files, tensor_name
from jaxbooth.weights.ldm.layout import LdmTensor, layout
from jaxbooth.weights.ldm.write import constant, single_file_shapes
from jaxbooth.weights.names import canonical, export_array, import_axes, parameter_names, torch_shape

FLOAT32 = np.dtype(np.float32)
# What float32 arithmetic may lose, relative to a tensor's largest value: a kernel plus a product over the rank, and
# for DoRA also a norm over a fan-in of ten thousand. Values that were only copied or cast must be the same bits.
MERGE_ERROR, DORA_ERROR = 1e-6, 1e-5


class Expected(NamedTuple):
    """A tensor that should be in a file.

    Attributes:
        value: called when its turn comes; returns it before it is cast to `dtype`.
        error: what float32 arithmetic may have changed, relative to the largest value; 0: nothing.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    value: Callable[[], np.ndarray]
    error: float = 0.0


Files = dict[Path, list[Expected]]


class Weights(ComponentTensors):
    """What one component's parameters should be: trained, the base model's with adapters added, or the base model's.

    Attributes:
        names: state-dict name -> parameter name, of all of the network.

    Args:
        trained: whole parameters or adapters, without learned embeddings; nothing for an untouched component.
        dtype: of the export; None keeps each tensor's own of the base model.
    """

    def __init__(self, base: BaseModel, component: str, trained: Params, dtype: np.dtype | None):
        super().__init__(base.folder / component, trained, dtype)
        self.network, self.lora = base.module(component), base.lora
        self.names = parameter_names(self.network.shapes)

    def network_shape(self, name: str) -> tuple[int, ...]:
        """Returns a parameter's shape in PyTorch's layout, whose rank the base model's files may not have."""
        own = self.names[name]
        return torch_shape(own, self.network.shapes[own].shape)

    def leaf(self, name: str, leaf: str) -> str:
        """Returns the name of a part of a parameter's adapter."""
        return f"{self.names[name].removesuffix('.kernel')}.{leaf}"

    def error_of(self, name: str) -> float:
        """Returns what float32 arithmetic may have changed of a parameter."""
        if self.leaf(name, MAGNITUDE) in self.params:
            return DORA_ERROR
        return MERGE_ERROR if self.leaf(name, LORA_A) in self.params else 0.0

    def value(self, name: str) -> np.ndarray:
        """Returns a parameter in PyTorch's layout, before it is cast."""
        value = super().value(name)
        value = value.reshape(self.network_shape(name)) if self.params else value  # a matrix, or a 1x1 kernel
        if name in self.replaced or self.leaf(name, LORA_A) not in self.params:
            return value
        assert self.lora is not None
        own = self.names[name]
        leaves = {leaf: np.asarray(self.params[key], np.float64) for leaf in (LORA_A, LORA_B, MAGNITUDE)
                  if (key := self.leaf(name, leaf)) in self.params}  # fmt: skip
        kernel = value.transpose(import_axes(own, value.ndim)).astype(np.float64)
        return export_array(own, add_adapter(kernel, leaves, self.lora.scale))

    def read_back(self, name: str) -> np.ndarray:
        """Returns a parameter as readers of the export see it, in jaxbooth's layout and in float32."""
        value = self.written(name).astype(np.float32)
        return value.transpose(import_axes(self.names[name], value.ndim))


def add_adapter(kernel: np.ndarray, leaves: Mapping[str, np.ndarray], scale: float) -> np.ndarray:
    """Returns W + scale A B, with DoRA's magnitudes in place of the outputs' norms; float64."""
    total = kernel + scale * (leaves[LORA_A] @ leaves[LORA_B].reshape(leaves[LORA_B].shape[-2:]))
    if MAGNITUDE in leaves:
        total *= leaves[MAGNITUDE] / np.sqrt(np.square(total).sum(axis=tuple(range(total.ndim - 1))))
    return total


def expected_weights(
    base: BaseModel, trained: Mapping[str, Params], format: ExportFormat, dtype: ExportDtype
) -> dict[str, Weights]:
    """Returns component -> the weights of the model that readers of an export have, less what they add themselves.

    Under a LoRA and learned embeddings that is the base model as it is; otherwise all of it is of one dtype.
    """
    if format not in ("diffusers", "single-file"):
        return {component: Weights(base, component, {}, None) for component in base.components}
    own = {component: without_embeddings(trained.get(component, {})) for component in base.components}
    return {component: Weights(base, component, params, DTYPES[dtype]) for component, params in own.items()}


def expected_files(
    base: BaseModel, trained: Mapping[str, Params], out: Path, format: ExportFormat, dtype: ExportDtype
) -> Files:
    """Returns weight file -> its tensors, for all of an export but a LoRA.

    Raises:
        UserError: a component of a written folder has tensors that are not those of its network.
    """
    files: Files = {}
    if format in ("diffusers", "single-file"):
        weights = expected_weights(base, trained, format, dtype)
        if format == "single-file":
            files[out / f"{out.name}.safetensors"] = single_file(base, weights)
        else:
            for component in weights.values():
                files |= component_files(component, out / component.folder.name)
    return files | embeddings(base, trained, out)


def component_files(weights: Weights, folder: Path) -> Files:
    """Returns what the weight files of one component of a diffusers folder should hold: all of its network."""
    match_names([stored for names in weight_files(folder).values() for stored in names], weights.network, folder)
    return {
        folder / plain_name(file): [component_tensor(weights, stored) for stored in names]
        for file, names in weights.files.items()
    }


def component_tensor(weights: Weights, stored: str) -> Expected:
    """Returns what becomes of one tensor of the base model's files: buffers and untouched components stay."""
    name = canonical(stored)
    if name is None or weights.is_copied:
        shape, dtype = weights.stored_shape(stored), weights.stored_dtype(stored)
        return Expected(stored, shape, dtype, lambda: weights.stored_value(stored))
    return Expected(
        weights.published(name),
        weights.network_shape(name) if weights.params else weights.stored_shape(stored),
        weights.dtype_of(name),
        lambda: weights.value(name),
        weights.error_of(name),
    )


def single_file(base: BaseModel, weights: Mapping[str, Weights]) -> list[Expected]:
    """Returns what a single file should hold: every name of its family."""
    tensors = {
        entry.name: entry_tensor(part, entry) for name, part in weights.items() for entry in layout(base.folder, name)
    }
    empty = np.zeros(0, FLOAT32)
    return [
        tensors[name]._replace(shape=shape) if name in tensors else Expected(name, shape, FLOAT32, lambda: empty)
        for name, shape in single_file_shapes(base.folder).items()
    ]


def entry_tensor(weights: Weights, entry: LdmTensor) -> Expected:
    """Returns one tensor of a single file, made of one or several of the component's."""
    dtype = weights.dtype_of(entry.sources[0] if entry.sources else next(iter(weights.stored)))
    if not entry.sources:
        return Expected(entry.name, entry.shape, dtype, lambda: constant(entry.shape, dtype))
    error = max(weights.error_of(source) for source in entry.sources)
    join = entry.join
    return Expected(
        entry.name, entry.shape, dtype, lambda: join([weights.value(source) for source in entry.sources]), error
    )


def embeddings(base: BaseModel, trained: Mapping[str, Params], out: Path) -> Files:
    """Returns what the files of learned embeddings should hold: (vectors, d) of one word each, for every encoder."""
    files, start = {}, 0
    names = embedding_files([token.text for token in base.text.placeholder_tokens])
    for token in base.text.placeholder_tokens:
        rows = slice(start, start := start + len(token.entries))
        files[out / names[token.text]] = [
            embedding(tensor_name(encoder, token.text), trained[encoder.component][PLACEHOLDER_EMBEDDING], rows)
            for encoder in base.family.text_encoders
        ]
    return files


def embedding(key: str, table: AnyArray, rows: slice) -> Expected:
    """Returns the rows of one word."""
    return Expected(key, (rows.stop - rows.start, table.shape[1]), FLOAT32, lambda: np.asarray(table)[rows])
