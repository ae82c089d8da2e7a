"""`jaxbooth ui`: its flags."""

from pathlib import Path
from typing import Annotated

import tyro

from jaxbooth.cli.parse import parse
from jaxbooth.config.limits import Port
from jaxbooth.config.section import Section
from jaxbooth.errors import UserError
from jaxbooth.storage.remote import as_path, is_local


class UiArguments(Section):
    """Serve a page to work in: prepare runs, queue, watch and compare them, and take away what they have learned."""

    root: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "runs"
    """Folder of the run folders; it is created if it is missing."""
    port: Port = 7860
    """Port to listen at."""
    host: str = "127.0.0.1"
    """Address to listen at; default: this machine alone. With another one, whoever has the printed address can start
    programs here."""
    folders: Annotated[tuple[str, ...], tyro.conf.arg(metavar="FOLDER [FOLDER ...]")] = ()
    """Further folders whose photos and models the page may show and use. It sees nothing else but --root."""
    devices: Annotated[tuple[str, ...], tyro.conf.arg(metavar="GPUS [GPUS ...]")] = ()
    """Sets of GPUs, such as 0 1 or 0,1 2,3: one run trains on each. Default: one run at a time has all devices."""


def ui_command(argv: list[str]) -> None:
    """Serves the page."""
    arguments = parse(UiArguments, argv, "jaxbooth ui")
    try:
        from jaxbooth.ui.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"jaxbooth ui needs {error.name}: pip install 'jaxbooth[ui]'.") from None
    root = local_folder(arguments.root, "--root")
    folders = tuple(local_folder(name, "--folders") for name in arguments.folders)
    serve(root, arguments.port, arguments.host, folders, arguments.devices)


def local_folder(name: str, flag: str) -> Path:
    """Returns the path of a folder on this machine.

    Raises:
        UserError: it is in an object store, where a queue could lock nothing.
    """
    path = as_path(name)
    if not is_local(path):
        raise UserError(
            f"{flag} {name} is in an object store, and the page works with this machine's disks; name a local folder "
            "(`jaxbooth report` reads runs in a store)."
        )
    return path
