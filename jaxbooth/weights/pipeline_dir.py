"""A whole diffusers folder, out: components that change are rewritten, everything else is copied as it is."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import ml_dtypes
import numpy as np

from jaxbooth.console import progress
from jaxbooth.files import write_json
from jaxbooth.params import Params
from jaxbooth.storage.paths import plain_file_name
from jaxbooth.storage.text import read_json
from jaxbooth.weights.component import Component, save_component
from jaxbooth.weights.diffusers_dir import COMPONENTS, index_file, plain_name, weight_files

ExportDtype = Literal["base", "float32", "float16", "bfloat16"]
ExportFormat = Literal["diffusers", "single-file", "lora", "embeddings"]
DTYPES = {"base": None, "float32": np.dtype("float32"), "float16": np.dtype("float16"),
          "bfloat16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip
COPIED = ("tokenizer", "tokenizer_2", "scheduler", "feature_extractor", "safety_checker")


def write_folder(base: Path, params: Mapping[str, Params], out: Path, dtype: ExportDtype = "base") -> None:
    """Fills the empty folder `out` with what `diffusers.DiffusionPipeline.from_pretrained` opens.

    Args:
        base: the folder that the model came from; its configurations and its layout are kept.
        params: component -> parameters to write; components without keep the base model's.
        dtype: of all components; "base" keeps what the base model's files have, and copies untouched ones.
    """
    components = [name for name in COMPONENTS if (base / name).is_dir()]
    with progress("export", len(components)) as bar:
        for component in components:
            bar.note(component)
            (out / component).mkdir()
            shutil.copyfile(base / component / "config.json", out / component / "config.json")
            if component in params or DTYPES[dtype]:
                written = Component(base / component, params.get(component, {}), DTYPES[dtype])
                save_component(written, out / component)
            else:
                copy_weights(base / component, out / component)
            bar.advance()
    for name in COPIED:
        if (base / name).is_dir():
            copy_files(base / name, out / name)
    write_index(base, out)


def write_index(base: Path, out: Path) -> None:
    """Copies `model_index.json`; parts that it names and the base folder lacks (a safety checker) become null."""
    index = read_json(base / "model_index.json")
    parts = [key for key, value in index.items() if isinstance(value, list) and any(value[:1])]
    absent = [key for key in parts if not (out / plain_file_name(key, str(base / "model_index.json"))).is_dir()]
    if not absent:
        shutil.copyfile(base / "model_index.json", out / "model_index.json")
        return
    index |= {key: [None, None] for key in absent}
    if "safety_checker" in absent:
        index["requires_safety_checker"] = False
    write_json(out / "model_index.json", index)


def copy_files(source: Path, target: Path) -> None:
    """Copies the files of a folder into a new one; subfolders and what is no regular file no reader looks for."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def copy_weights(source: Path, target: Path) -> None:
    """Copies a component's weight files, and their index."""
    index = index_file(source)
    for path in [*(source / name for name in weight_files(source)), *([index] if index else [])]:
        shutil.copyfile(path, target / plain_name(path.name))
