"""A whole diffusers folder, out: components that change are rewritten, everything else is copied as it is."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from jaxbooth.console.progress import progress
from jaxbooth.params import Params
from jaxbooth.storage.files import write_json
from jaxbooth.storage.paths import plain_file_name
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import COMPONENTS
from jaxbooth.weights.component import ComponentTensors, save_component
from jaxbooth.weights.diffusers_read import index_file, plain_name, weight_files

ExportDtype = Literal["base", "float32", "float16", "bfloat16"]
ExportFormat = Literal["diffusers", "single-file", "lora", "embeddings"]
DTYPES = {"base": None, "float32": np.dtype("float32"), "float16": np.dtype("float16"),
          "bfloat16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip
COPIED = ("tokenizer", "tokenizer_2", "scheduler", "feature_extractor", "safety_checker")


def default_dtype(kind: ExportFormat) -> ExportDtype:
    """Returns the dtype that a format has unless another one is asked for.

    A folder is float32: opened without a dtype, transformers 5 keeps that of the files and diffusers takes float32, so
    that a folder in less than float32 could not draw.
    """
    return "float32" if kind == "diffusers" else "base"


def write_folder(
    base: Path,
    params: Mapping[str, Params],
    out: Path,
    dtype: ExportDtype = "base",
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Fills the empty folder `out` with what `diffusers.DiffusionPipeline.from_pretrained` opens.

    Args:
        base: the folder that the model came from; its configurations and its layout are kept.
        params: component -> parameters to write; components without keep the base model's.
        dtype: of all components; "base" keeps what the base model's files have. Untouched ones that have it already
            are copied.
        changes: component -> keys of its `config.json` that get another value.
    """
    components = [name for name in COMPONENTS if (base / name).is_dir()]
    with progress("export", len(components)) as bar:
        for component in components:
            bar.set_postfix(component)
            (out / component).mkdir()
            write_config(base / component, out / component, dtype, (changes or {}).get(component, {}))
            written = ComponentTensors(base / component, params.get(component, {}), DTYPES[dtype])
            if written.is_copied:
                copy_weights(base / component, out / component)
            else:
                save_component(written, out / component)
            bar.advance()
    for name in COPIED:
        if (base / name).is_dir():
            copy_files(base / name, out / name)
    if (out / "safety_checker" / "config.json").exists():  # its weights stay, and are loaded in the dtype that it says
        write_config(base / "safety_checker", out / "safety_checker", dtype)
    write_index(base, out)


def write_config(source: Path, target: Path, dtype: ExportDtype, changes: Mapping[str, Any] | None = None) -> None:
    """Writes a component's `config.json`: a copy, unless a key changes.

    transformers loads a model in the dtype that its configuration names, whatever its files have; it is named anew.
    """
    raw = read_json(source / "config.json")
    changed = raw | dict(changes or {})
    if DTYPES[dtype] and "model_type" in raw:  # of transformers
        changed |= {key: dtype for key in ("dtype", "torch_dtype") if key in raw} or {"torch_dtype": dtype}
    if changed == raw:
        shutil.copyfile(source / "config.json", target / "config.json")
    else:
        write_json(target / "config.json", changed)


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
