"""A single safetensors file: the whole model as A1111, Forge, ComfyUI and kohya's tools read it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxbooth.export.format import Export, ExportFormat, ReadBack
from jaxbooth.export.written_model import WrittenModel
from jaxbooth.weights.diffusers_read import to_parameter
from jaxbooth.weights.diffusers_write import DTYPES
from jaxbooth.weights.ldm.layout import layout
from jaxbooth.weights.ldm.read import proper_name
from jaxbooth.weights.ldm.write import markers, placeholder_value, write_single_file
from jaxbooth.weights.names import parameter_names
from jaxbooth.weights.prepare import link_model
from jaxbooth.weights.single_file import Checkpoint, SingleFileTensor


class SingleFileFormat(ExportFormat):
    """A whole model in one file with LDM names, `<out>/<name of out>.safetensors`."""

    name = "single-file"
    help = "a checkpoint for A1111 and ComfyUI"
    introduction = "A full fine-tuning of"
    is_whole_model = True

    def weights_file(self, name: str) -> str:
        """Returns the file's name."""
        return f"{name}.safetensors"

    def write(self, export: Export, folder: Path) -> None:
        """Writes the file, and an inference configuration beside it where web UIs need one."""
        file = folder / self.weights_file(export.out.name)
        write_single_file(export.base.folder, export.merged(), file, DTYPES[export.dtype], export.metadata)

    def read_back(self, export: Export) -> Iterator[ReadBack]:
        """Reads every name of the family, each tensor as the parameters that it holds.

        What no reader of jaxbooth asks for (placeholders, markers) is read as it is: other programs want it.
        """
        model, base = WrittenModel(export), export.base
        file = export.out / self.weights_file(export.out.name)
        checkpoint = Checkpoint(file, False, proper_name)
        missing = set(checkpoint.tensors.keys())
        for component in base.components:
            for tensor in layout(base.folder, component):
                missing.discard(tensor.name)
                yield read_tensor(checkpoint, model, component, tensor, f"{file.name}: {tensor.name}")
        for name in markers(base.folder):
            found = checkpoint.tensors.get_tensor(name) if name in missing else None
            missing.discard(name)
            yield ReadBack(f"{file.name}: {name}", found, np.zeros(0, np.float32))
        for name in sorted(missing):
            yield ReadBack(f"{file.name}: {name}", checkpoint.tensors.get_tensor(name), None)

    def torch_pipeline(self, export: Export, scratch: Path) -> Any:
        """Opens the file with the base model's configurations, but not its weights, which would fill in for it."""
        import diffusers

        folder = link_model(export.base.folder, export.base.components, scratch, with_weights=False)
        file = export.out / self.weights_file(export.out.name)
        pipeline = getattr(diffusers, export.base.family.pipeline)
        return pipeline.from_single_file(str(file), config=str(folder), local_files_only=True)


def read_tensor(
    checkpoint: Checkpoint, model: WrittenModel, component: str, tensor: SingleFileTensor, label: str
) -> ReadBack:
    """Reads one tensor, as the parameters that it is made of, flat and one after the other."""
    if tensor.name not in checkpoint.tensors.keys():  # noqa: SIM118
        return ReadBack(label, None, np.empty(tensor.shape))
    names = parameter_names(model.base.module(component).shapes)
    sources = [names[source] for source in tensor.sources]
    dtype = model.dtype(component, sources[0] if sources else next(iter(model.stored[component].tensors)))
    stored = checkpoint.tensors.get_tensor(tensor.name)
    if stored.shape != tensor.shape:  # jaxbooth takes a matrix for a 1x1 kernel, and other programs do not
        return ReadBack(label, stored, np.empty(tensor.shape, dtype))
    if not sources:
        return ReadBack(label, stored, placeholder_value(tensor.shape, dtype))
    found, expected = [], []
    for name, source in zip(sources, tensor.sources, strict=True):
        ndim = len(model.base.module(component).shapes[name].shape)
        found.append(to_parameter(name, tensor.part(stored, source), ndim).ravel())
        expected.append(model.value(component, name).astype(dtype).ravel())
    error = max(model.error(component, name) for name in sources)
    return ReadBack(label, np.concatenate(found), np.concatenate(expected), error)
