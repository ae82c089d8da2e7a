"""Folders that overlap, refused before anything is written: outputs would become inputs, or take their place."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxbooth.assets import EMBEDDED_MODELS
from jaxbooth.config.held_out import validation_key
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject
from jaxbooth.errors import UserError
from jaxbooth.runs.folder import RunFolder
from jaxbooth.storage.paths import as_orbax_path, is_within, local_path
from jaxbooth.storage.remote import as_path, is_local

# What a run writes in its own folder, and replaces or deletes there.
RUN_ENTRIES = ("checkpoints", "samples", "tensorboard", "evaluation", "prior", "export", ".export")


class FlagPath(NamedTuple):
    """A folder or a file, and the flag that named it."""

    flag: str
    path: Path


def check_run_folders(config: Config) -> None:
    """Refuses a run whose inputs and outputs overlap, and one in whose folder no checkpoint could be read.

    Raises:
        UserError: the message names both flags, or what is wrong with the path.
    """
    as_orbax_path(RunFolder(as_path(config.run_dir)).checkpoints)
    run = FlagPath("--run-dir", as_path(config.run_dir))
    photos, classes, models = list(instance_folders(config)), list(class_folders(config)), list(model_paths(config))
    for given in (*photos, *models):
        refuse_overlap(run, given)
    for made in classes:
        refuse_inside(run, made)
        for entry in RUN_ENTRIES:
            if entry != "prior":
                refuse_inside(made, FlagPath("a folder of --run-dir,", run.path / entry))
        for given in (*photos, *models):
            refuse_overlap(made, given)


def check_output(out: Path, root: Path, config: Config, allowed: str = "") -> None:
    """Refuses a folder for what is made of a run (--out) where it would become one of the run's inputs or parts.

    Args:
        root: the run's folder.
        config: the run's.
        allowed: entry of the run's folder that is meant for it.

    Raises:
        UserError: the message says what is there.
    """
    target = FlagPath("--out", out)
    for given in (*instance_folders(config), *class_folders(config), *model_paths(config)):
        refuse_inside(target, given)
    for entry in RUN_ENTRIES:
        if entry != allowed:
            refuse_inside(target, FlagPath("a folder of the run,", root / entry))


def check_output_of_model(out: Path, model: str) -> None:
    """Refuses a folder for images (--out) in the folder of the model that draws them.

    Raises:
        UserError: it lies there.
    """
    if local_path(model).is_dir():
        refuse_inside(FlagPath("--out", out), FlagPath("the model", local_path(model)))


def subjects_of(config: Config) -> tuple[Subject, ...]:
    """Returns the subjects, of which a run that was not started yet may have none."""
    return config.subjects if config.data.subjects or config.data.instance_dir else ()


def instance_folders(config: Config) -> Iterator[FlagPath]:
    """Yields the folders with the subjects' photos, held-out ones among them."""
    for index, subject in enumerate(subjects_of(config), start=1):
        entry = f"data.subjects, entry {index}: instance_dir" if config.data.subjects else "--data.instance-dir"
        yield FlagPath(entry, subject.instance_dir)
        if subject.validation_dir:
            yield FlagPath(validation_key(config, index), subject.validation_dir)


def class_folders(config: Config) -> Iterator[FlagPath]:
    """Yields the class folders that were named; the run's own, which is the default, is none."""
    for index, subject in enumerate(subjects_of(config), start=1):
        if subject.class_dir and config.prior.uses_class_images:
            entry = f"data.subjects, entry {index}: class_dir" if config.data.subjects else "--data.class-dir"
            yield FlagPath(entry, subject.class_dir)


def model_paths(config: Config) -> Iterator[FlagPath]:
    """Yields the folders and files of models that are read; what is on the Hub or embedded has none."""
    names = {
        "--model": config.model,
        "--vae": config.vae,
        "--components": config.components,
        "--lora.init": config.lora.init,
        "--evaluation.clip": config.evaluation.clip,
        "--evaluation.dino": config.evaluation.dino,
    }
    for flag, name in names.items():
        path = local_path(name or "")
        if name and str(name) not in EMBEDDED_MODELS and path.exists():
            yield FlagPath(flag, path)


def refuse_overlap(output: FlagPath, given: FlagPath) -> None:
    """Raises UserError if one of two folders is the other or lies in it."""
    refuse_inside(output, given)
    refuse_inside(given, output)


def refuse_inside(inner: FlagPath, outer: FlagPath) -> None:
    """Raises UserError if a folder is another one or lies in it; those on an object store are left to the user."""
    if is_local(inner.path) and is_local(outer.path) and is_within(inner.path, outer.path):
        lies = "is also" if is_within(outer.path, inner.path) else "lies in"
        raise UserError(
            f"{inner.flag} {inner.path} {lies} {outer.flag} {outer.path}, where outputs and inputs would mix; "
            f"choose another folder for {inner.flag}."
        )
