"""The form of a new run as a request brings it."""

from dataclasses import replace
from pathlib import Path

from starlette.requests import Request

from jaxbooth.errors import UserError
from jaxbooth.ui.draft import FOLDER, Draft, Form, one, read_draft
from jaxbooth.ui.photos import find_set
from jaxbooth.ui.roots import NotFound
from jaxbooth.ui.state import Server

SET = "set:"  # the choice of uploaded photos; none: those of what the run is based on


async def read_form(request: Request) -> Form:
    """Returns the texts of a request's form."""
    form: dict[str, list[str]] = {}
    for name, value in (await request.form()).multi_items():
        if isinstance(value, str):
            form.setdefault(name, []).append(value)
    return form


def chosen_photos(server: Server, form: Form) -> Path | None:
    """Returns the folder of photos that a form chooses; None if it chooses none.

    Raises:
        UserError: a typed folder is not one that this page may read.
    """
    choice = one(form, "photos")
    if choice.startswith(SET):
        return find_set(server.roots, choice.removeprefix(SET))
    typed = one(form, "folder")
    if choice != FOLDER or not typed:
        return None
    try:
        folder = server.roots.inside(typed)
    except NotFound:
        folder = None
    if folder is None or not folder.is_dir():
        raise UserError(
            f"{typed} is not a folder in {', '.join(map(str, (server.roots.runs, *server.roots.others)))}; choose one "
            "there, or start jaxbooth ui with --folders."
        )
    return folder


def draft_of(server: Server, form: Form, base_name: str = "base") -> Draft:
    """Reads a form, with whatever is wrong with its photos as the problem."""
    try:
        return read_draft(form, server.roots, chosen_photos(server, form), base_name)
    except UserError as error:
        without = {name: values for name, values in form.items() if name not in ("photos", "folder")}
        draft = read_draft(without, server.roots, None, base_name)
        return replace(draft, problem=str(error), problem_keys=("data.instance_dir",))
