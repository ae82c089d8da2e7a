"""Whether a run's folders can be written and have room for all that it will write, known before it makes anything."""

import os
from pathlib import Path

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.data.class_images import ClassImages
from jaxbooth.errors import UserError
from jaxbooth.export.export import FORMATS, default_format
from jaxbooth.runs.checkpoint import checkpoint_steps
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.metric_writer import SUPERSEDED, UNREADABLE
from jaxbooth.storage.disk import DiskRequirement, check_space, check_writable, format_bytes
from jaxbooth.storage.remote import as_path, is_local
from jaxbooth.training.state import TrainState, tree_bytes
from jaxbooth.weights.diffusers_read import weight_files


def check_folders(config: Config, base: BaseModel, classes: list[ClassImages], state: TrainState) -> None:
    """Makes sure that the run's and the class folders can be written, and that their disks have room.

    An object store has room, and is written to at once.

    Args:
        state: shapes of the train state, which is what a checkpoint holds.

    Raises:
        UserError: one of them cannot, or has not.
    """
    check_entries(RunFolder(as_path(config.run_dir)))
    requirements = run_requirements(config, base, state)
    for class_images in classes:
        if class_images.missing and is_local(class_images.folder):
            requirement = class_images_requirement(class_images.folder, class_images.missing, config.resolution)
            requirements.append(requirement)
    for requirement in requirements:
        check_writable(requirement.folder, requirement.key)
    check_space(requirements)


def check_entries(run: RunFolder) -> None:
    """Refuses a local run folder in which something else has the name of a folder or a file that a run writes.

    Raises:
        UserError: the message names it.
    """
    folders = (run.checkpoints, run.samples(0).parent, run.tensorboard, run.export)
    logs = (run.metrics, run.validation_metrics)
    files = (*logs, run.base_latents, run.selection, run.images, run.base_model, run.contact_sheet)
    aside = [log.with_name(log.name + ending) for log in logs for ending in (SUPERSEDED, UNREADABLE)]
    for path in (*folders, *files, *aside) if is_local(run.root) else ():
        fits = path.is_dir() if path in folders else path.is_file()
        fits = fits and not (path in aside and path.is_symlink())  # what it leads to would grow
        if os.path.lexists(path) and not fits:
            kind = "folder" if path in folders else "file"
            raise UserError(f"{path} is no {kind}, and a run writes a {kind} of that name; move it away.")


def run_requirements(config: Config, base: BaseModel, state: TrainState) -> list[DiskRequirement]:
    """Returns what a run will write into its own folder from where it stands."""
    run = RunFolder(as_path(config.run_dir))
    requirements: list[DiskRequirement] = []
    if not is_local(run.root):
        return requirements
    steps = checkpoint_steps(run.checkpoints)
    if max(steps, default=0) < config.train.steps:
        # One more than are kept: the oldest goes when the newest is whole.
        pinned = (config.evaluation.keep_best is not None) + (config.validation.drift_limit is not None)
        size, count = tree_bytes(state), config.train.max_checkpoints + pinned + 1 - len(steps)
        if count > 0:
            contents = f"{count} checkpoint(s) of {format_bytes(size)}"
            requirements.append(DiskRequirement(run.root, "--run-dir", contents, count * size))
        if config.export:
            size = export_bytes(config, base, state)
            requirements.append(DiskRequirement(run.root, "--run-dir", f"an export of {format_bytes(size)}", size))
    return requirements


def class_images_requirement(folder: Path, images: int, side: int) -> DiskRequirement:
    """Returns what generated images of a class will take.

    Args:
        side: of the square images, in pixels.
    """
    # Noise would not compress.
    return DiskRequirement(folder, "--data.class-dir", f"{images} class images", images * 3 * side**2)


def export_bytes(config: Config, base: BaseModel, state: TrainState) -> int:
    """Returns about what the export will take: the whole model in its dtype, or what was trained, in two forms."""
    format = FORMATS[default_format(config.lora, config.text)]
    if not format.is_whole_model:
        return 2 * tree_bytes(state.params)
    if format.default_dtype(base.family) == "base":
        folders = [base.folder / component for component in base.components]
        return sum((folder / name).stat().st_size for folder in folders for name in weight_files(folder))
    return sum(4 * leaf.size for component in base.components for leaf in base.module(component).shapes.values())
