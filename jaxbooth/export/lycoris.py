"""A LoHa or LoKr in the names of LyCORIS, for ComfyUI and the web UIs; of a flow transformer's LoKr also PEFT's."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxbooth.base.model import BaseModel
from jaxbooth.export.format import Export, ExportFormat, ReadBack
from jaxbooth.export.lora import (
    PEFT_FILE,
    SCALE_ERROR,
    check_kind,
    read_adapters,
    spec_of,
    stored_dtypes,
    trainable_modules,
    trained_lora,
)
from jaxbooth.export.torch_lycoris import add_to_weights
from jaxbooth.models.adapter_kinds import KINDS, AdapterKindName
from jaxbooth.params import AnyArray, by_component
from jaxbooth.weights.diffusers_write import DTYPES
from jaxbooth.weights.family import Family
from jaxbooth.weights.lora.lycoris import with_scale
from jaxbooth.weights.lora.peft_lokr import peft_factor, write_peft_lokr
from jaxbooth.weights.lora.write_lycoris import write_lycoris


class LycorisFormat(ExportFormat):
    """LoHa or LoKr, to be used with the base model."""

    hub_tags = ("lora", "lycoris")

    def __init__(self, kind: AdapterKindName):
        self.name, self.title = kind, KINDS[kind].title
        self.help = f"{self.title} for ComfyUI and the web UIs"
        self.introduction = f"A {self.title} for"

    def check(self, base: BaseModel) -> None:
        """Refuses a run that trained something else."""
        check_kind(base, self.name, (self.name,))

    def weights_file(self, name: str) -> str:
        """Returns LyCORIS' file."""
        return f"{name}_lycoris.safetensors"

    def is_for_diffusers(self, export: Export) -> bool:
        """Whether diffusers (0.42) reads the adapters, so that there is a file for it."""
        is_read = self.name == "lokr" and export.base.family.denoiser_file is not None
        return is_read and peft_factor(trained_lora(export)) is not None

    def files(self, export: Export) -> list[str]:
        """Returns the names of the files, diffusers' first if there is one."""
        peft = [PEFT_FILE] if self.is_for_diffusers(export) else []
        return [*peft, self.weights_file(export.out.name)]

    def write(self, export: Export, folder: Path) -> None:
        """Writes the files."""
        lora, base, dtype = trained_lora(export), export.base, DTYPES[export.dtype]
        for file in self.files(export):
            if file == PEFT_FILE:
                write_peft_lokr(folder / file, lora, export.metadata, dtype)
            else:
                write_lycoris(
                    folder / file, lora, trainable_modules(base), base.denoiser_config, export.metadata, dtype
                )

    def read_back(self, export: Export) -> Iterator[ReadBack]:
        """Reads the files as `--lora.init` does, then dtypes and alphas."""
        dtype = DTYPES[export.dtype] or np.dtype(np.float32)
        for file in self.files(export):
            trained = trained_lora(export)
            if file == PEFT_FILE:
                trained = with_scale(trained, 1.0)
            written = read_adapters(export, export.out / file)
            for name, value in trained.adapters.items():
                found = written.adapters.pop(name, None)
                error = SCALE_ERROR if file == PEFT_FILE and name.endswith("lokr_w1.kernel") else 0.0
                yield ReadBack(
                    f"{file}: {name}", found if found is None else found.astype(dtype), value.astype(dtype), error
                )
            for name, surplus in sorted(written.adapters.items()):
                yield ReadBack(f"{file}: {name}", surplus, None)
            for key, alpha in trained.alphas.items():
                if file != PEFT_FILE:
                    found = np.full((), written.alphas.get(key, np.nan), np.float32)
                    yield ReadBack(f"{file}: {key}.alpha", found, np.full((), alpha, np.float32))
            yield from stored_dtypes(export.out / file, dtype)

    def load_in_torch(self, pipe: Any, export: Export) -> None:
        """Adds the file to the pipeline: by diffusers, or where it does not read the kind by LyCORIS' formulas."""
        if self.is_for_diffusers(export):
            pipe.load_lora_weights(export.out, weight_name=PEFT_FILE)
        else:
            file = export.out / self.weights_file(export.out.name)
            add_to_weights(pipe, file, export.base)

    def written_adapters(self, export: Export) -> dict[str, dict[str, AnyArray]]:
        """Returns component -> adapters, rounded as they were written."""
        return by_component(read_adapters(export, export.out / self.weights_file(export.out.name)).adapters)

    def notes(self, export: Export) -> list[str]:
        """Returns which file is for whom."""
        file = self.weights_file(export.out.name)
        if self.is_for_diffusers(export):
            return [f"{PEFT_FILE} is for diffusers, {file} for ComfyUI"]
        if self.name == "lokr" and export.base.family.denoiser_file:
            return [
                f"{file} is for ComfyUI; diffusers reads no LoKr with the groups of --lora.factor "
                f"{spec_of(export).factor}, so give it an export with --format diffusers, or the LoRA that jaxbooth "
                "lora resize makes of the file"
            ]
        return [
            f"{file} is for ComfyUI, the web UIs and LyCORIS; diffusers reads no {self.title} of this base model, so "
            "give it an export with --format diffusers"
        ]

    def loading_code(self, repo: str, family: Family, tokens: Sequence[str], files: Sequence[str]) -> list[str]:
        """Returns the line of Python that adds the LoKr to `pipe`, or what to do instead."""
        if PEFT_FILE in files:
            return [f"pipe.load_lora_weights({repo!r}, weight_name={PEFT_FILE!r})"]
        return [f"# diffusers reads no {self.title} here: use ComfyUI or a web UI, with {repo} as a LoRA"]
