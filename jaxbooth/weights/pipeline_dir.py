"""A whole diffusers folder, out: trained components rewritten, everything else copied as it is."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Literal

import ml_dtypes
import numpy as np

from jaxbooth.console import progress
from jaxbooth.errors import UserError
from jaxbooth.files import write_json
from jaxbooth.params import Params
from jaxbooth.weights.diffusers_dir import COMPONENTS, plain_name, read_json, save_component, weight_files

ExportDtype = Literal["base", "float32", "float16", "bfloat16"]
DTYPES = {"base": None, "float32": np.dtype("float32"), "float16": np.dtype("float16"),
          "bfloat16": np.dtype(ml_dtypes.bfloat16)}  # fmt: skip
COPIED = ("tokenizer", "scheduler", "feature_extractor", "safety_checker")


def export_folder(base: Path, params: Mapping[str, Params], out: Path, dtype: ExportDtype = "base") -> None:
    """Writes a folder that `diffusers.StableDiffusionPipeline.from_pretrained` opens.

    Args:
        base: the folder that the model came from; its configurations and its layout are kept.
        params: component -> parameters to write; components without are copied.
        dtype: of the written components; "base" keeps what the base model's files have.

    Raises:
        UserError: `out` exists already and is not an empty folder.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another --out or remove it.")
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        with progress("export", len(COMPONENTS)) as bar:
            for component in COMPONENTS:
                bar.note(component)
                copy_component(base / component, aside / component, weights=component not in params)
                if component in params:
                    save_component(params[component], base / component, aside / component, DTYPES[dtype])
                bar.advance()
        for name in COPIED:
            if (base / name).is_dir():
                shutil.copytree(base / name, aside / name, copy_function=shutil.copyfile)
        write_index(base, aside)
        aside.chmod(0o755)
        aside.replace(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_index(base: Path, out: Path) -> None:
    """Copies `model_index.json`; parts that it names and the base folder lacks (a safety checker) become null."""
    index = read_json(base / "model_index.json")
    absent = [key for key, value in index.items() if isinstance(value, list) and value[0] and not (out / key).is_dir()]
    if not absent:
        shutil.copyfile(base / "model_index.json", out / "model_index.json")
        return
    index |= {key: [None, None] for key in absent}
    if "safety_checker" in absent:
        index["requires_safety_checker"] = False
    write_json(out / "model_index.json", index)


def copy_component(source: Path, target: Path, weights: bool) -> None:
    """Copies a component's configuration, and its weight files if asked."""
    target.mkdir()
    shutil.copyfile(source / "config.json", target / "config.json")
    if weights:
        for path in [source / name for name in weight_files(source)] + sorted(source.glob("*.index.json")):
            shutil.copyfile(path, target / plain_name(path.name))
