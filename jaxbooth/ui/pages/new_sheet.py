"""The contact sheet on the page of a new run."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jaxbooth.config import limits
from jaxbooth.config.section import Section
from jaxbooth.data.crops import CropSpec
from jaxbooth.errors import UserError
from jaxbooth.ui.base_models import image_sides
from jaxbooth.ui.contact_sheet import MAX_CROPS, is_example
from jaxbooth.ui.draft import Form, one, read_draft
from jaxbooth.ui.form_request import SET, chosen_photos, read_form
from jaxbooth.ui.photos import count_photos, find_set
from jaxbooth.ui.render import page
from jaxbooth.ui.roots import NotFound
from jaxbooth.ui.state import Server, server_of


async def sheet(request: Request) -> Response:
    """Shows the contact sheet of the form's photos."""
    server, form = server_of(request), await read_form(request)
    async with server.sheets.turn:
        view = await asyncio.to_thread(sheet_view, server, form)
    return page(request, "new_sheet.html", **view)


def sheet_view(server: Server, form: Form) -> dict[str, Any]:
    """Returns what the contact sheet is filled with; without photos, or with a folder that cannot be used, why."""
    view: dict[str, Any] = {"sheet": None, "problem": "", "set_name": None, "masked": False}
    choice = one(form, "photos")
    if choice.startswith(SET):
        view["set_name"] = choice.removeprefix(SET)
        if not count_photos(find_set(server.roots, view["set_name"])):
            return view
    try:
        draft = read_draft(form, server.roots, chosen_photos(server, form))
    except UserError:  # is said beside the choice of photos
        return view
    if "photos" in draft.missing:
        return view
    sides = image_sides(draft.config)
    try:
        view["sheet"] = server.sheets.make(draft.config, sides)
    except (UserError, NotFound) as error:
        text = str(error) if isinstance(error, UserError) else f"{error} lies outside of what this page may read."
        view["problem"] = text
    resolution = draft.config.data.resolution or sides.native
    return view | {"sides": sides, "resolution": resolution, "masked": draft.config.data.masks}


class TileRequest(Section):
    """What a tile shows: see `SheetMaker.tile`."""

    photo: str
    index: limits.Seed
    height: limits.Pixels
    width: limits.Pixels
    crops: Annotated[int, Ge(0), Le(MAX_CROPS)]
    flip: bool
    seed: limits.Seed
    masked: bool
    number: int


async def tile(request: Request) -> Response:
    """Sends one augmentation of a photo."""
    server, query = server_of(request), dict(request.query_params)
    query.pop("v", None)
    try:
        asked = TileRequest.model_validate(query)
    except ValueError:
        raise NotFound from None
    photo = Path(asked.photo)
    if not is_example(photo):
        photo = server.roots.inside(photo)
    spec = CropSpec(asked.height, asked.width, asked.crops, asked.flip, asked.seed)
    async with server.sheets.turn:
        content = await asyncio.to_thread(server.sheets.tile, photo, asked.index, spec, asked.masked, asked.number)
    return Response(content, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


ROUTES = [
    Route("/new/sheet", sheet, methods=["POST"]),
    Route("/new/tile", tile),
]
