"""What lies in a folder of images and is not used, said where somebody may expect that it is."""

from pathlib import Path

from jaxbooth.console.messages import warn
from jaxbooth.data.file_names import join_names
from jaxbooth.data.images import ImageFolder, describe_unused


def warn_unused(folder: ImageFolder, path: Path) -> None:
    """Warns of files in a folder of images that somebody may expect to be used, with the reason for each."""
    names = describe_unused(folder.unused)
    if names:
        warn(f"{path}: not used: {names}.")
    if folder.overruled:
        warn(f"{path}: metadata has the captions of these images, so not used: {join_names(folder.overruled)}.")
