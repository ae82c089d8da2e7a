"""A single safetensors file: the whole model as A1111, Forge, ComfyUI and kohya's tools read it.

Of a flow model it is the transformer alone, as ComfyUI's `diffusion_models` folder has it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxbooth.base.model import BaseModel
from jaxbooth.export.format import Export, ExportFormat, ReadBack
from jaxbooth.export.written_model import WrittenModel
from jaxbooth.weights.denoiser_file.write import denoiser_layout, write_denoiser
from jaxbooth.weights.diffusers_read import open_tensors, to_parameter
from jaxbooth.weights.diffusers_write import DTYPES
from jaxbooth.weights.ldm.layout import layout
from jaxbooth.weights.ldm.write import markers, placeholder_value, write_single_file
from jaxbooth.weights.names import parameter_names
from jaxbooth.weights.prepare import link_model
from jaxbooth.weights.single_file import SingleFileTensor


class SingleFileFormat(ExportFormat):
    """A model in one file, `<out>/<name of out>.safetensors`, with the names that the family's files have."""

    name = "single-file"
    help = "a checkpoint for A1111 and ComfyUI"
    introduction = "A full fine-tuning of"
    is_whole_model = True

    def weights_file(self, name: str) -> str:
        """Returns the file's name."""
        return f"{name}.safetensors"

    def write(self, export: Export, folder: Path) -> None:
        """Writes the file, and an inference configuration beside it where web UIs need one."""
        file, base = folder / self.weights_file(export.out.name), export.base
        dtype, merged = DTYPES[export.dtype], export.merged()
        if base.family.denoiser_file:
            params = merged.get(base.denoiser_name, {})
            write_denoiser(base.folder, base.family, params, file, dtype, export.metadata)
        else:
            write_single_file(base.folder, merged, file, dtype, export.metadata)

    def read_back(self, export: Export) -> Iterator[ReadBack]:
        """Reads every name of the family, each tensor as the parameters that it holds.

        What no reader of jaxbooth asks for (placeholders, markers) is read as it is: other programs want it.
        """
        model, base = WrittenModel(export), export.base
        file = export.out / self.weights_file(export.out.name)
        tensors = open_tensors(file)
        missing = set(tensors.keys())
        for component, file_tensors in file_layout(base).items():
            for tensor in file_tensors:
                missing.discard(tensor.name)
                yield read_tensor(tensors, model, component, tensor, f"{file.name}: {tensor.name}")
        for name in [] if base.family.denoiser_file else markers(base.folder):
            found = tensors.get_tensor(name) if name in missing else None
            missing.discard(name)
            yield ReadBack(f"{file.name}: {name}", found, np.zeros(0, np.float32))
        for name in sorted(missing):
            yield ReadBack(f"{file.name}: {name}", tensors.get_tensor(name), None)

    def torch_pipeline(self, export: Export, scratch: Path) -> Any:
        """Opens the file with the base model's configurations, but not its weights, which would fill in for it.

        Parts that the file does not hold are the base model's.
        """
        import diffusers

        base, file = export.base, str(export.out / self.weights_file(export.out.name))
        pipeline = getattr(diffusers, base.family.pipeline)
        if base.family.denoiser_file is None:
            folder = link_model(base.folder, base.components, scratch, with_weights=False)
            return pipeline.from_single_file(file, config=str(folder), local_files_only=True)
        folder = link_model(base.folder, base.components, scratch)
        component = base.denoiser_name
        denoiser = getattr(diffusers, base.family.denoiser.class_name).from_single_file(
            file, config=str(folder), subfolder=component, local_files_only=True
        )
        return pipeline.from_pretrained(folder, local_files_only=True, **{component: denoiser})

    def notes(self, export: Export) -> list[str]:
        """Returns what the file does not hold."""
        if export.base.family.denoiser_file is None:
            return []
        return [
            "the file holds the transformer alone, for the folder models/diffusion_models of ComfyUI; the text encoder "
            "and the VAE are the base model's"
        ]


def file_layout(base: BaseModel) -> dict[str, list[SingleFileTensor]]:
    """Returns component -> its tensors in a single file, of the components that such a file holds."""
    if base.family.denoiser_file:
        return {base.denoiser_name: denoiser_layout(base.folder, base.family)}
    return {component: layout(base.folder, component) for component in base.components}


def read_tensor(tensors: Any, model: WrittenModel, component: str, tensor: SingleFileTensor, label: str) -> ReadBack:
    """Reads one tensor, as the parameters that it is made of, flat and one after the other.

    Args:
        tensors: the open file.
    """
    if tensor.name not in tensors.keys():  # noqa: SIM118
        return ReadBack(label, None, np.empty(tensor.shape))
    names = parameter_names(model.base.module(component).shapes)
    sources = [names[source] for source in tensor.sources]
    dtype = model.dtype(component, sources[0] if sources else next(iter(model.stored[component].tensors)))
    stored = tensors.get_tensor(tensor.name)
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
