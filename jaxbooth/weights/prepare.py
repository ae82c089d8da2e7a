"""A plain diffusers folder, made once from what is not one: safetensors only, one set of weights for each component.

A folder lies in `$JAXBOOTH_CACHE/models` (or `~/.cache/jaxbooth/models`) under a name that follows from its originals
and from what was asked for, so it is found again. What can be used as it is stays where it is, behind a symlink.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from jaxbooth.console.messages import info
from jaxbooth.console.progress import progress
from jaxbooth.diffusion.flow import FLOW_SCHEDULERS
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.storage.files import write_json
from jaxbooth.storage.paths import ascii_repr, local_path, short_name
from jaxbooth.storage.text import read_json
from jaxbooth.weights.architectures import COMPONENTS
from jaxbooth.weights.denoiser_file.identify import Denoiser
from jaxbooth.weights.denoiser_file.read import convert_denoiser
from jaxbooth.weights.diffusers_read import index_file, open_tensors, plain_name, read_weight_map, weight_files
from jaxbooth.weights.diffusers_write import write_index
from jaxbooth.weights.ldm.read import PLAIN_PARTS, convert_single_file, convert_vae
from jaxbooth.weights.pickles import PICKLES, convert_pickle
from jaxbooth.weights.source import Source
from jaxbooth.weights.weight_sets import check_variant, choose_weights

LAYOUT_VERSION = 1  # of prepared folders; a change of what the converters write counts it up
Writer = Callable[[Path], None]  # writes one entry of a prepared folder


def file_names(folder: Path) -> list[str]:
    """Returns the names of the files in a folder."""
    return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def prepare(model: Path, source: Source, vae: Path | None = None, denoiser: Denoiser | None = None) -> Path:
    """Returns a plain diffusers folder; `model` itself if it is one and nothing else was asked for.

    Args:
        model: a diffusers folder or a checkpoint in one file.
        source: what was asked for besides.
        vae: a VAE's folder, a folder that has one in `vae/`, or a VAE in one file, to use in place of the model's.
        denoiser: a transformer in one file, to use in place of the model's.

    Raises:
        UserError: a file cannot be read, or what was asked for is not there.
        RunFailure: the cache cannot be written.
    """
    if model.is_file():
        model = converted_single_file(model, source.prediction_type, source.allow_pickle)
        source = replace(source, prediction_type=None)
    makers = overrides(model, source, vae, denoiser)
    if not makers:
        return model
    options = {name: getattr(source, name) for name in ("variant", "allow_pickle", "prediction_type")}
    originals = [*([denoiser.file] if denoiser else []), model, *([vae] if vae else [])]
    return cached_folder(originals, options, partial(write_overlay, model, makers))


def check_is_checkpoint(file: Path) -> None:
    """Refuses a file that is no checkpoint, as its name or its head says.

    Raises:
        UserError: the message names the file.
    """
    suffix = file.suffix.lower()
    if suffix == ".safetensors":
        try:
            open_tensors(file)
        except UserError:
            raise UserError(
                f"model {file} is a file, but no safetensors that can be read; expected a checkpoint or a folder in "
                "diffusers layout."
            ) from None
    elif suffix == ".gguf":
        raise UserError(
            f"model {file} is a GGUF file, whose weights are quantized; use the model's bf16 .safetensors file."
        )
    elif suffix not in PICKLES:
        raise UserError(
            f"model {file} is a file of a kind that jaxbooth does not read; expected a .safetensors checkpoint or a "
            "folder in diffusers layout."
        )


def converted_single_file(file: Path, prediction_type: str | None, allow_pickle: bool) -> Path:
    """Returns the diffusers folder of a checkpoint in one file."""

    def build(folder: Path) -> None:
        info(f"{file} ({file.stat().st_size / 1e9:.2f} GB) is converted once, into {cache_folder()}.")
        convert_single_file(file, folder, prediction_type=prediction_type, allow_pickle=allow_pickle)

    return cached_folder([file, file.with_suffix(".yaml")], {"prediction_type": prediction_type}, build)


def overrides(model: Path, source: Source, vae: Path | None, denoiser: Denoiser | None) -> dict[str, Writer]:
    """Returns entry of the model's folder -> what writes it, for those that cannot stay as they are."""
    makers: dict[str, Writer] = {}
    replaced = [*(["vae"] if vae else []), *([denoiser.family.denoiser.component] if denoiser else [])]
    parts = {part: file_names(model / part) for part in COMPONENTS if part not in replaced}
    variant, allow_pickle = source.variant, source.allow_pickle
    check_variant((f"{part}/{name}" for part, names in parts.items() for name in names), variant, f"model {model}")
    for part, names in parts.items():
        files = choose_weights(names, variant, allow_pickle, str(model / part))
        renamed = [name for name in files if plain_name(name) != name]
        # A single file of any name is read as it is, unless a plain one beside it would go first.
        if any(".bin" in name for name in files) or (renamed and (variant or len(files) > 1)):
            makers[part] = partial(link_component, model / part, files)
    if vae:
        makers["vae"] = partial(write_vae, vae, model, variant, allow_pickle)
    if denoiser:
        check_same_family(denoiser, model)
        makers[denoiser.family.denoiser.component] = partial(write_denoiser, denoiser, model)
    scheduler = model / "scheduler" / "scheduler_config.json"
    if source.prediction_type and is_changed(read_json(scheduler), source.prediction_type, model):
        makers["scheduler"] = partial(write_scheduler, scheduler, source.prediction_type)
    return makers


def is_changed(scheduler: dict[str, Any], prediction_type: str, model: Path) -> bool:
    """Tells whether a model's scheduler is one of another prediction type.

    Raises:
        UserError: it is that of a flow model, which has no choice.
    """
    if scheduler.get("_class_name") in FLOW_SCHEDULERS:
        raise UserError(
            f"--prediction-type {prediction_type} does not apply to model {model}, whose scheduler is of a flow model."
        )
    return scheduler.get("prediction_type", "epsilon") != prediction_type


def write_overlay(model: Path, makers: dict[str, Writer], out: Path) -> None:
    """Writes `out`: entries of `model` behind symlinks, but for those that are made."""
    out.mkdir()
    for entry in model.iterdir():
        if not entry.name.startswith(".") and entry.name not in makers:
            (out / entry.name).symlink_to(entry.absolute())
    for name, make in makers.items():
        make(out / name)


def link_component(source: Path, files: list[str], out: Path) -> None:
    """Writes a component that has the weights `files` and no others, under plain names."""
    out.mkdir()
    if (source / "config.json").exists():
        (out / "config.json").symlink_to((source / "config.json").absolute())
    for name in files:
        target = out / safetensors_name(name)
        if name.endswith(".json"):
            shards = read_weight_map(source / name)
            names = {tensor: safetensors_name(file) for tensor, file in shards.items()}
            write_json(target, read_json(source / name) | {"weight_map": names})
        elif name.endswith(".bin"):
            convert_pickle(source / name, target)
        else:
            target.symlink_to((source / name).absolute())


def link_model(model: Path, components: Iterable[str], out: Path, with_weights: bool = True) -> Path:
    """Fills the folder `out` with a model as diffusers opens it: plain file names, and no part named that is missing.

    Args:
        with_weights: link them too; without, diffusers cannot fill in what a single file lacks.
    """
    for name in PLAIN_PARTS:
        if (model / name).is_dir():
            (out / name).symlink_to((model / name).absolute())
    for component in components:
        index = index_file(model / component)
        files = [*weight_files(model / component), *([index.name] if index else [])]
        link_component(model / component, files if with_weights else [], out / component)
    write_index(model, out)
    return out


def safetensors_name(name: str) -> str:
    """Returns the plain name of a component's weight file or index, once it is safetensors."""
    return re.sub("^pytorch_model", "model", plain_name(name)).replace(".bin", ".safetensors")


def write_vae(vae: Path, model: Path, variant: str | None, allow_pickle: bool, out: Path) -> None:
    """Writes the component `vae` from another model's, or from one file, for which `model` gives the configuration."""
    if vae.is_file():
        convert_vae(vae, out, config=model / "vae" / "config.json", allow_pickle=allow_pickle)
        return
    folder = vae if (vae / "config.json").exists() else vae / "vae"
    if not (folder / "config.json").exists():
        raise UserError(f"--vae {vae} is no VAE in diffusers layout: config.json is missing.")
    files = choose_weights(file_names(folder), variant, allow_pickle, str(folder))
    if files:
        link_component(folder, files, out)
    else:
        out.symlink_to(folder.absolute())  # where the weights are looked for, what is wrong is named


def check_same_family(denoiser: Denoiser, model: Path) -> None:
    """Refuses to put a transformer into a model of another family.

    Raises:
        UserError: the message names both.
    """
    pipeline = read_json(model / "model_index.json").get("_class_name")
    if pipeline != denoiser.family.pipeline:
        raise UserError(
            f"{denoiser.file} is a {denoiser.family.title} transformer, and --components {model} is for "
            f"{ascii_repr(pipeline)}; name a {denoiser.family.title} model."
        )


def write_denoiser(denoiser: Denoiser, model: Path, out: Path) -> None:
    """Writes the transformer's component from one file, for which `model` gives the configuration."""
    info(f"{denoiser.file} ({denoiser.file.stat().st_size / 1e9:.2f} GB) is converted once, into {cache_folder()}.")
    convert_denoiser(denoiser, model / denoiser.family.denoiser.component / "config.json", out)


def write_scheduler(config: Path, prediction_type: str, out: Path) -> None:
    """Writes the component `scheduler` with another prediction type."""
    write_json(out / config.name, read_json(config) | {"prediction_type": prediction_type})


def cache_folder() -> Path:
    """Returns the folder that prepared models lie in."""
    return local_path(os.environ.get("JAXBOOTH_CACHE") or "~/.cache/jaxbooth") / "models"


def cached_folder(originals: Sequence[Path], options: dict[str, Any], build: Writer) -> Path:
    """Returns the prepared folder of these originals and wishes, after `build` has written it if it is not there.

    Args:
        originals: files and folders that `build` reads, the model first; what does not exist is an answer too.

    Raises:
        RunFailure: the folder cannot be written.
    """
    identity = json.dumps([LAYOUT_VERSION, [stats_of(path) for path in originals], options])
    repository = next((part for part in originals[0].absolute().parts if part.startswith("models--")), "")
    name = short_name(repository.removeprefix("models--") or originals[0].stem)
    folder = cache_folder() / f"{name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(mkdtemp(dir=folder.parent, prefix=f".{name}."))
    except OSError as error:
        raise RunFailure(f"{folder.parent} cannot be written ({error.strerror}); set JAXBOOTH_CACHE.") from None
    try:
        with progress("convert", total=None, transient=True):
            build(aside / "model")
        (aside / "model").rename(folder)
    except OSError as error:
        if folder.is_dir():  # another process was faster
            return folder
        raise RunFailure(f"{folder} could not be written ({error.strerror or error}); set JAXBOOTH_CACHE.") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def stats_of(original: Path) -> list[Any]:
    """Returns what tells whether a file, or the files of a folder, are still the same."""
    files = [original] if original.is_file() else sorted([*original.glob("*"), *original.glob("*/*")])
    stats = [(str(path.absolute()), path.stat()) for path in files if path.is_file()]
    return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
