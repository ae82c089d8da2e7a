"""The list of runs, which is the queue, too: start, stop, reorder, delete."""

import asyncio
import tempfile
from pathlib import Path
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jaxbooth.errors import UserError
from jaxbooth.storage.files import remove_tree
from jaxbooth.ui.job import TRAIN, JobFiles, changing, job_names
from jaxbooth.ui.photos import DELETED
from jaxbooth.ui.render import page
from jaxbooth.ui.run_list import RunSummary
from jaxbooth.ui.state import Server, server_of

STATE_PART = "state"  # of a run's own page


async def show(request: Request) -> Response:
    """Shows all runs."""
    return await runs_page(request, "runs.html")


async def rows(request: Request) -> Response:
    """Shows the list alone."""
    return await runs_page(request, "run_rows.html")


async def runs_page(request: Request, template: str) -> Response:
    """Fills a template with the runs."""
    server = server_of(request)
    runs = await asyncio.to_thread(server.runs.all)
    return page(request, template, runs=runs, root=server.roots.runs)


async def answer(request: Request, gone: bool = False) -> Response:
    """Answers what has changed a run: to its own page, that it has; to the list, with the list.

    Args:
        gone: the run's page cannot stay open.
    """
    if request.headers.get("hx-target") != STATE_PART:
        return await rows(request)
    return Response(status_code=204, headers={"hx-redirect": "/"} if gone else {"hx-trigger": "changed-state"})


async def start(request: Request) -> Response:
    """Puts a run's training into the queue."""
    await asyncio.to_thread(enqueue_training, server_of(request), request.path_params["name"])
    return await answer(request)


async def stop(request: Request) -> Response:
    """Takes a run out of the queue, or asks its training to save and end."""
    run = server_of(request).run(request.path_params["name"])
    await asyncio.to_thread(JobFiles.of(run.folder.root, TRAIN).stop)
    return await answer(request)


async def move(request: Request) -> Response:
    """Moves a waiting run in the queue."""
    server = server_of(request)
    form = await request.form()
    direction: Literal["up", "down"] = "up" if form.get("direction") == "up" else "down"
    await asyncio.to_thread(server.queue.move, server.run(request.path_params["name"]).folder.root, direction)
    return await rows(request)


async def delete(request: Request) -> Response:
    """Deletes a run folder."""
    server = server_of(request)
    await asyncio.to_thread(delete_run, server, server.run(request.path_params["name"]))
    return await answer(request, gone=True)


def enqueue_training(server: Server, name: str) -> None:
    """Puts a run's training at the end of the queue.

    Raises:
        UserError: it waits or trains already, here or elsewhere.
    """
    run = server.run(name)
    if run.state == "elsewhere":
        raise UserError(f"{name} is being trained by another process; wait for its end.")
    JobFiles.of(run.folder.root, TRAIN).enqueue(train_command(run))


def train_command(run: RunSummary) -> list[str]:
    """Returns the command that trains in a run's folder, also if the folder was renamed or copied."""
    config, folder = run.progress.config, str(run.folder.root)
    moved = [] if config is None or config.run_dir == folder else [f"--run-dir={folder}"]
    return ["train", str(run.folder.config), *moved]


def delete_run(server: Server, run: RunSummary) -> None:
    """Deletes a run folder: out of sight first, so that no half of it is seen; a killed server's successor goes on.

    Raises:
        UserError: something works in it.
    """
    folder = run.folder.root
    aside = Path(tempfile.mkdtemp(dir=server.roots.server, prefix=DELETED))
    with changing:
        jobs = [name for name in job_names(folder) if JobFiles.of(folder, name).state() == "running"]
        if jobs or server.runs.get(folder).is_active:
            aside.rmdir()
            raise UserError(f"{run.name} is in use ({jobs[0] if jobs else run.state}); stop it before you delete it.")
        folder.rename(aside / "run")
    remove_tree(aside)


ROUTES = [
    Route("/", show),
    Route("/runs", rows),
    Route("/runs/{name}/start", start, methods=["POST"]),
    Route("/runs/{name}/stop", stop, methods=["POST"]),
    Route("/runs/{name}/move", move, methods=["POST"]),
    Route("/runs/{name}/delete", delete, methods=["POST"]),
]
