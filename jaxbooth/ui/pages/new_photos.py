"""Uploaded photos on the page of a new run: one request for each, their captions, and how they are removed."""

import asyncio

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from jaxbooth.errors import UserError, format_message
from jaxbooth.ui.disk_errors import describe_disk_error
from jaxbooth.ui.draft import one
from jaxbooth.ui.form_request import read_form
from jaxbooth.ui.photos import create_set, find_set, keep, receive, remove_photo, write_caption
from jaxbooth.ui.state import server_of


async def new_set(request: Request) -> Response:
    """Creates an empty folder for photos, and answers with its name."""
    server, form = server_of(request), await read_form(request)
    try:
        folder = await asyncio.to_thread(create_set, server.roots, one(form, "name") or "subject")
    except UserError as error:
        return JSONResponse({"problem": format_message(str(error))}, 422)
    return JSONResponse({"name": folder.name})


async def upload(request: Request) -> Response:
    """Takes one photo, as the body of the request; answers with its name, or says why it is not kept."""
    server = server_of(request)
    folder = find_set(server.roots, request.path_params["set"])
    try:
        received = await receive(server.roots, request.stream())
        name = await asyncio.to_thread(keep, received, folder, request.query_params.get("name", ""))
    except ClientDisconnect:
        return Response(status_code=400)
    except UserError as error:
        return JSONResponse({"problem": format_message(str(error))}, 422)
    except OSError as error:
        return JSONResponse({"problem": describe_disk_error(error)}, 500)
    return JSONResponse({"name": name})


async def remove(request: Request) -> Response:
    """Deletes a photo."""
    server, form = server_of(request), await read_form(request)
    folder = find_set(server.roots, request.path_params["set"])
    await asyncio.to_thread(remove_photo, folder, one(form, "photo"))
    return Response(status_code=204, headers={"hx-trigger": "sheet"})


async def caption(request: Request) -> Response:
    """Writes the captions of a photo."""
    server, form = server_of(request), await read_form(request)
    folder = find_set(server.roots, request.path_params["set"])
    await asyncio.to_thread(write_caption, folder, one(form, "photo"), one(form, "caption"))
    return Response(status_code=204, headers={"hx-trigger": "captions"})


ROUTES = [
    Route("/new/photos", new_set, methods=["POST"]),
    Route("/new/photos/{set}/upload", upload, methods=["POST"]),
    Route("/new/photos/{set}/remove", remove, methods=["POST"]),
    Route("/new/photos/{set}/caption", caption, methods=["POST"]),
]
