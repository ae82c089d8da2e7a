"""Whether all that a report reads of a run lies in the roots: links in its folder, and folders that it names."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from jaxbooth.config.run_config import Config
from jaxbooth.data.class_images import class_folders
from jaxbooth.errors import UserError
from jaxbooth.ui.roots import NotFound, Roots
from jaxbooth.ui.run_list import RunSummary

FOLDERS = (".", "samples", "evaluation")  # in a run folder, whose files a report shows


def check_links(roots: Roots, run: RunSummary) -> None:
    """Refuses a run of which a report would show something outside of the roots.

    Raises:
        UserError: the message names the link or the folder.
    """
    folder = run.folder.root
    outside = next((path for path in links(folder / name for name in FOLDERS) if leads_out(roots, path)), None)
    if outside is not None:
        raise UserError(
            f"{run.name}: {outside.relative_to(folder)} is a link to something that this page may not read; replace "
            "it by the file."
        )
    for path in class_image_paths(run.progress.config):
        if leads_out(roots, path):
            raise UserError(
                f"{run.name} has class images in {path}, which this page may not read; start jaxbooth ui with "
                f"--folders {path.parent}."
            )


def class_image_paths(config: Config | None) -> Iterator[Path]:
    """Yields the folders of a run's class images, and links in them."""
    if config is None or not config.prior.uses_class_images:
        return
    folders = class_folders(config.data, config.subjects, config.run_dir)
    yield from folders
    yield from links(folders)


def links(folders: Iterable[Path]) -> Iterator[Path]:
    """Yields the links that lie directly in folders."""
    for folder in folders:
        with suppress(OSError):
            yield from (path for path in folder.iterdir() if path.is_symlink())


def leads_out(roots: Roots, path: Path) -> bool:
    """Whether a path exists and lies outside of the roots."""
    try:
        roots.inside(path)
    except NotFound:
        return path.exists()
    return False
