"""The held-out images of a run: found, checked like those that are trained on, and never among them."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxbooth.config.held_out import validation_key
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import info, pluralize
from jaxbooth.data.file_names import join_names
from jaxbooth.data.held_out import check_not_trained, hold_out
from jaxbooth.data.images import ImageFile, ImageFolder, scan_folder
from jaxbooth.errors import UserError


class SplitFolders(NamedTuple):
    """The images of each subject.

    Attributes:
        trained: what is trained on.
        held_out: what is not; a subject may have none.
    """

    trained: list[ImageFolder]
    held_out: list[list[ImageFile]]


def split_subjects(config: Config, instances: Sequence[ImageFolder]) -> SplitFolders:
    """Finds each subject's held-out images: in a folder of their own, or among its photos, which are fewer then.

    Raises:
        UserError: no photo is left to train on, a folder has no images or a caption that cannot be used, or a held-out
            image shows what is trained on.
    """
    trained: list[ImageFolder] = []
    held_out: list[list[ImageFile]] = []
    for number, (subject, folder) in enumerate(zip(config.subjects, instances, strict=True), start=1):
        images: list[ImageFile] = []
        if subject.validation_dir:
            key = validation_key(config, number)
            images = scan_folder(subject.validation_dir, subject.instance_prompt, key).images
            info(f"held out: {pluralize(len(images), 'image')} in {subject.validation_dir}")
        elif config.data.hold_out:
            check_some_left(config.data.hold_out, folder, str(subject.instance_dir))
            folder, images = hold_out(folder, config.data.hold_out, config.seed)
            names = join_names(file.path.name for file in images)
            info(f"held out: {names}, so {pluralize(len(folder.images), 'image')} of {subject.instance_dir} left")
        trained.append(folder)
        held_out.append(images)
    check_not_trained(
        [file for images in held_out for file in images], [file for folder in trained for file in folder.images]
    )
    return SplitFolders(trained, held_out)


def check_some_left(count: int, folder: ImageFolder, path: str) -> None:
    """Refuses to hold out all photos of a subject.

    Raises:
        UserError: the message says how many there are.
    """
    total = len(folder.images)
    if count >= total:
        remedy = f"hold out {total - 1} at most" if total > 1 else "leave the flag out"
        raise UserError(
            f"--data.hold-out {count} leaves no photo to train on: {path} has {pluralize(total, 'image')}; {remedy}."
        )
