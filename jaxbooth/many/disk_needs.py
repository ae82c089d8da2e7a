"""Whether the disks have room for all that the subjects of a program will write, known before the work begins."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from jaxbooth.base.model import BaseModel
from jaxbooth.config.manifest import SubjectRun
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import pluralize
from jaxbooth.data.class_images import ClassImages, open_all_class_images
from jaxbooth.errors import UserError
from jaxbooth.runs.checkpoint import checkpoint_steps
from jaxbooth.runs.disk_needs import class_images_requirement, export_bytes
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.program_folder import ProgramFolder
from jaxbooth.storage.disk import DiskRequirement, check_space, disk_of, format_bytes
from jaxbooth.storage.remote import as_path, is_local
from jaxbooth.training.state import TrainState, tree_bytes


def check_disks(
    folder: ProgramFolder, subjects: Sequence[SubjectRun], base: BaseModel, state: TrainState, slots: int
) -> None:
    """Makes sure that the disks have room for what the subjects have yet to write.

    Args:
        subjects: those that are not done.
        state: shapes of the train state of one subject.
        slots: subjects that are saved together.

    Raises:
        UserError: one of the disks has not.
    """
    check_space([*root_requirements(folder, subjects, base, state, slots), *class_requirements(subjects, base)])


def root_requirements(
    folder: ProgramFolder, subjects: Sequence[SubjectRun], base: BaseModel, state: TrainState, slots: int
) -> list[DiskRequirement]:
    """Returns what the subjects will write into the program's folder; see `check_disks`.

    A subject writes one checkpoint, when it is done. A file with the states in slots takes the place of the one before
    when it is whole.
    """
    to_train = [subject for subject in subjects if not has_all_steps(subject.config)]
    slots = min(slots, len(to_train))
    state_size = tree_bytes(state)
    sizes = {
        f"{pluralize(len(to_train), 'checkpoint')} of {format_bytes(state_size)}": len(to_train) * state_size,
        f"states of {pluralize(slots, 'slot')} twice": 2 * slots * state_size,
    }
    exported = [subject.config for subject in subjects if subject.config.export]
    if exported:
        each = export_bytes(exported[0], base, state)
        sizes[f"{pluralize(len(exported), 'export')} of {format_bytes(each)}"] = len(exported) * each
    return [DiskRequirement(folder.root, "--run-dir", contents, size) for contents, size in sizes.items() if size]


def has_all_steps(config: Config) -> bool:
    """Whether a subject's checkpoint is written."""
    steps = checkpoint_steps(RunFolder(as_path(config.run_dir)).checkpoints)
    return max(steps, default=0) >= config.train.steps


def class_requirements(subjects: Sequence[SubjectRun], base: BaseModel) -> list[DiskRequirement]:
    """Returns the class images that are missing, together for each disk; see `check_disks`."""
    by_disk: dict[int, list[ClassImages]] = {}
    for classes in open_classes(subjects, base):
        if classes.missing and is_local(classes.folder):
            by_disk.setdefault(disk_of(classes.folder), []).append(classes)
    side = subjects[0].config.resolution
    return [
        class_images_requirement(same_disk[0].folder, sum(classes.missing for classes in same_disk), side)
        for same_disk in by_disk.values()
    ]


def open_classes(subjects: Sequence[SubjectRun], base: BaseModel) -> Iterator[ClassImages]:
    """Yields every class of the subjects whose images are used, once.

    One whose folder cannot be read is left out; its subjects fail when their turn comes.
    """
    of_class = {(subject.config.data.class_dir, subject.config.data.class_prompt): subject for subject in subjects}
    for _, config, _ in of_class.values():
        if config.prior.uses_class_images:
            with suppress(UserError, OSError):
                classes, _ = open_all_class_images(
                    base, config.model, config.data, config.prior, config.subjects, config.run_dir
                )
                yield from classes
