"""A diffusers folder: the whole model, which `DiffusionPipeline.from_pretrained` and jaxbooth open."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxbooth.base.model import BaseModel
from jaxbooth.errors import RunFailure
from jaxbooth.export.format import Export, ExportFormat, ReadBack
from jaxbooth.export.written_model import WrittenModel
from jaxbooth.storage.text import read_json
from jaxbooth.weights.diffusers_read import StoredParameters
from jaxbooth.weights.diffusers_write import DTYPES, ComponentTensors, ExportDtype, write_folder
from jaxbooth.weights.family import Family
from jaxbooth.weights.names import torch_shape


class DiffusersFormat(ExportFormat):
    """A whole model in diffusers layout."""

    name = "diffusers"
    help = "a whole model"
    introduction = "A full fine-tuning of"
    is_whole_model = True
    has_configuration = True

    def default_dtype(self, family: Family) -> ExportDtype:
        """Returns float32 for models of a few gigabytes.

        Opened without a dtype, transformers 5 keeps that of the files and diffusers takes float32, so that a folder in
        less than float32 does not generate an image. With a language model it would be twice as large for that alone.
        """
        return "base" if family.chat_encoder else "float32"

    def write(self, export: Export, folder: Path) -> None:
        """Writes all components, the scheduler and the tokenizers."""
        write_folder(export.base.folder, export.merged(), folder, export.dtype, config_overrides(export.base))

    def read_back(self, export: Export) -> Iterator[ReadBack]:
        """Reads all parameters of all components as jaxbooth reads a model."""
        model, base = WrittenModel(export), export.base
        for component in base.components:
            module, original = base.module(component), model.stored[component]
            written = StoredParameters(export.out / component, module)
            for name, (file, tensor) in written.tensors.items():
                label = f"{component}/{file}: {tensor}"
                shape = original.stored_shape(name)
                if component in model.trained:
                    shape = torch_shape(name, module.shapes[name].shape)
                if written.stored_shape(name) == shape:
                    yield ReadBack(label, written[name], model.value(component, name), model.error(component, name))
                else:  # jaxbooth takes a matrix for a 1x1 kernel, and diffusers does not
                    yield ReadBack(label, np.empty(written.stored_shape(name)), np.empty(shape))

    def check_configuration(self, export: Export) -> list[str]:
        """Makes sure that the folder names the end token where placeholder tokens would be taken for it."""
        end, component = export.base.text.eos_token_id_to_set, export.base.text_encoder_names[-1]
        if end is None:
            return []
        named = read_json(export.out / component / "config.json").get("eos_token_id")
        if named != end:
            raise RunFailure(
                f"{export.out / component / 'config.json'}: eos_token_id is {named} and should be {end}, or PyTorch "
                "reads the pooled text at a placeholder token. Remove this export and export again."
            )
        return [f"its {component} names the end token {end}"]

    def torch_pipeline(self, export: Export, scratch: Path) -> Any:
        """Opens the folder."""
        import diffusers

        return diffusers.DiffusionPipeline.from_pretrained(export.out, local_files_only=True)

    def notes(self, export: Export) -> list[str]:
        """Returns how a folder in less than float32 has to be opened."""
        dtype = DTYPES[export.dtype] or stored_dtype(export.base)
        if dtype == np.float32:
            return []
        return [f"open it in PyTorch with torch_dtype=torch.{dtype}, or its parts disagree on the dtype"]


def stored_dtype(base: BaseModel) -> np.dtype:
    """Returns the dtype of the denoiser in the base model's files."""
    denoiser = ComponentTensors(base.folder / base.denoiser_name, {})
    return denoiser.dtype_of(next(iter(denoiser.stored)))


def config_overrides(base: BaseModel) -> dict[str, dict[str, int]]:
    """Returns component -> the keys of its `config.json` that readers of an export need to have another value."""
    end = base.text.eos_token_id_to_set
    return {} if end is None else {base.text_encoder_names[-1]: {"eos_token_id": end}}
