"""The held-out images of a run: found, checked like those that are trained on, and never among them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxbooth.config.held_out import validation_key
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import info, pluralize
from jaxbooth.data.caption_variants import with_variants
from jaxbooth.data.file_names import join_names
from jaxbooth.data.held_out import check_not_trained, hold_out
from jaxbooth.data.images import ImageFile, ImageFolder, scan_folder
from jaxbooth.errors import UserError
from jaxbooth.runs.unused_files import warn_unused


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

    Args:
        instances: the photos of each subject.

    Raises:
        UserError: no photo is left to train on; a folder has no images, or a caption or an image that cannot be used;
            or a held-out image shows what is trained on.
    """
    trained: list[ImageFolder] = []
    held_out: list[list[ImageFile]] = []
    for number, (subject, folder) in enumerate(zip(config.subjects, instances, strict=True), start=1):
        images: list[ImageFile] = []
        if subject.validation_dir:
            images = scan_held_out(subject.validation_dir, subject.instance_prompt, validation_key(config, number))
            images = [with_variants(file, config.text, config.seed) for file in images]
        elif config.data.hold_out:
            folder, images = take_out(folder, subject.instance_dir, config.data.hold_out, config.seed)
        trained.append(folder)
        held_out.append(images)
    check_not_trained(
        [file for images in held_out for file in images], [file for folder in trained for file in folder.images]
    )
    return SplitFolders(trained, held_out)


def scan_held_out(path: Path, prompt: str, key: str) -> list[ImageFile]:
    """Lists a folder of held-out images, and says what it holds; see `scan_folder`."""
    folder = scan_folder(path, prompt, key)
    info(f"held out: {pluralize(len(folder.images), 'image')} in {path}")
    warn_unused(folder, path)
    return folder.images


def take_out(folder: ImageFolder, path: Path, count: int, seed: int) -> tuple[ImageFolder, list[ImageFile]]:
    """Takes images out of a subject's photos and says which; see `hold_out`.

    Raises:
        UserError: none would be left; the message says how many there are.
    """
    total = len(folder.images)
    if count >= total:
        remedy = f"hold out {total - 1} at most" if total > 1 else "leave the flag out"
        raise UserError(
            f"--data.hold-out {count} leaves no photo to train on: {path} has {pluralize(total, 'image')}; {remedy}."
        )
    rest, images = hold_out(folder, count, seed)
    names = join_names(file.path.name for file in images)
    info(f"held out: {names} of {path}, which leaves {pluralize(len(rest.images), 'image')} to train on")
    return rest, images
