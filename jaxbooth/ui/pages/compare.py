"""Runs side by side: the report of one or several runs, made when it is asked for."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from jaxbooth.errors import UserError
from jaxbooth.report.charts import COLOURS
from jaxbooth.report.report import make_report
from jaxbooth.ui.render import page
from jaxbooth.ui.roots import NotFound
from jaxbooth.ui.run_links import check_links
from jaxbooth.ui.run_list import RunSummary, file_versions
from jaxbooth.ui.state import Server, server_of

REPORTS = "reports"  # among the server's files
MAX_AGE = 3600  # seconds for which a report is kept
# Vega computes its charts with generated code. In a sandbox of its own the page has no access to the server.
SANDBOX = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'"
)
making = asyncio.Lock()  # a report takes a core and, with many images, some memory: one at a time


async def show(request: Request) -> Response:
    """Shows the choice of runs, and those that were chosen side by side."""
    server, names = server_of(request), request.query_params.getlist("run")
    runs = await asyncio.to_thread(server.runs.all)
    check_chosen(server, names)
    query = urlencode([("run", name) for name in names])
    comparable = [run for run in runs if run.progress.step]
    return page(request, "compare.html", runs=comparable, chosen=names, query=query, most=COLOURS)


async def report(request: Request) -> Response:
    """Sends the report of the chosen runs."""
    server, names = server_of(request), request.query_params.getlist("run")
    chosen = check_chosen(server, names)
    if not chosen:
        raise NotFound
    async with making:
        path = await asyncio.to_thread(make, server, chosen)
    return FileResponse(path, media_type="text/html", headers={"content-security-policy": SANDBOX})


def check_chosen(server: Server, names: Sequence[str]) -> list[RunSummary]:
    """Returns the chosen runs.

    Raises:
        NotFound: one does not exist.
        UserError: there are too many, or one has no metrics yet.
    """
    if len(names) > COLOURS:
        raise UserError(f"{len(names)} runs are too many to tell apart; choose at most {COLOURS}.")
    runs = [server.run(name) for name in dict.fromkeys(names)]
    for run in runs:
        if not run.progress.step:
            raise UserError(f"{run.name} has no metrics yet; wait for its first steps.")
    return runs


def make(server: Server, runs: Sequence[RunSummary]) -> Path:
    """Returns the file of a report, which is made again only if a run has changed."""
    folder = server.roots.server / REPORTS
    folder.mkdir(exist_ok=True)
    key = repr([(run.name, file_versions(run.folder.root)) for run in runs])
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.html"
    if not path.exists():
        remove_old(folder)
        for run in runs:
            check_links(server.roots, run)
        make_report([run.folder.root for run in runs], path)
    return path


def remove_old(folder: Path) -> None:
    """Removes reports that nobody has asked for lately."""
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > MAX_AGE:
            path.unlink(missing_ok=True)


ROUTES = [Route("/compare", show), Route("/compare/report", report)]
