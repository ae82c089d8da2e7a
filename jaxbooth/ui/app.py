"""The application: its routes, its errors, and what runs beside it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from jaxbooth.errors import RunFailure, UserError, format_message
from jaxbooth.ui.disk_errors import describe_disk_error
from jaxbooth.ui.guard import Guard, TooLarge
from jaxbooth.ui.pages import (
    compare,
    new,
    new_photos,
    new_plan,
    new_sheet,
    own_samples,
    results,
    run_samples,
    runs,
    watch,
)
from jaxbooth.ui.render import page
from jaxbooth.ui.roots import NotFound, Roots
from jaxbooth.ui.state import Server, server_of

STATIC = Path(__file__).with_name("static")
STYLE = Path(__file__).parents[1] / "report" / "page" / "style.css"  # colours and type are those of the report
PAGES = (runs, new, new_photos, new_sheet, new_plan, watch, run_samples, own_samples, results, compare)
FILES = {file.name: file for file in (STYLE, *STATIC.iterdir()) if file.suffix in (".css", ".js", ".svg")}


def make_app(
    roots: Roots, token: str, hosts: Sequence[str] = (), any_address: bool = False, device_sets: Sequence[str] = ()
) -> Starlette:
    """Returns the application.

    Args:
        hosts, any_address: see `Guard`.
        device_sets: see `Queue`.
    """
    server = Server.open(roots, device_sets)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncGenerator[None]:
        reading = asyncio.create_task(asyncio.to_thread(server.runs.all))  # before the first page asks
        watching = asyncio.create_task(server.changes.watch())
        with server.queue.running():
            yield
        server.planner.close()
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(watching, reading)

    app = Starlette(
        routes=[*shared_routes(), *(route for part in PAGES for route in part.ROUTES)],
        middleware=[Middleware(Guard, token=token, hosts=hosts, any_address=any_address)],
        exception_handlers={
            NotFound: not_found,
            404: not_found,
            405: not_found,  # the address of a button, opened as a page
            TooLarge: too_large,
            UserError: refused,
            RunFailure: refused,
            FileNotFoundError: not_found,
            OSError: failed,
            ClientDisconnect: left,
        },
        lifespan=lifespan,
    )
    app.state.server = server
    return app


def shared_routes() -> list[BaseRoute]:
    """Returns the routes of no page in particular."""
    return [Route("/events", events), Route("/static/{file}", static)]


async def events(request: Request) -> Response:
    """Streams what changes in one run (`?run=`) or in any."""
    server, run = server_of(request), request.query_params.get("run")
    if run is not None:
        server.roots.run(run)
    return StreamingResponse(server.changes.events(run), media_type="text/event-stream")


async def static(request: Request) -> Response:
    """Sends one of the page's own files."""
    path = FILES.get(request.path_params["file"])
    if path is None:
        raise NotFound
    return FileResponse(path)


async def not_found(request: Request, _error: Exception) -> Response:
    """Says that there is no such thing."""
    return error_page(request, 404, "There is nothing here. The run or file may have been renamed or deleted.")


async def refused(request: Request, error: Exception) -> Response:
    """Says why an input cannot be used; it is the same sentence as on the command line."""
    return error_page(request, 422, format_message(str(error)))


async def too_large(request: Request, error: Exception) -> Response:
    """Says that a request has too many bytes."""
    return error_page(request, 413, str(error))


async def failed(request: Request, error: Exception) -> Response:
    """Says that a file cannot be used."""
    assert isinstance(error, OSError)
    return error_page(request, 500, describe_disk_error(error))


async def left(_request: Request, _error: Exception) -> Response:
    """Ends a request whose sender has gone before it was complete."""
    return Response(status_code=400)


def error_page(request: Request, status: int, sentence: str) -> HTMLResponse:
    """Returns a sentence as a whole page, or as a notice for a page that is open."""
    is_part = request.headers.get("hx-request") == "true"
    return page(request, "notice.html" if is_part else "error.html", status, sentence=sentence)
