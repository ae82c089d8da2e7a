"""Images of an own prompt: asked of a run that trains, or generated from any of its checkpoints by a job."""

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jaxbooth.config.limits import MAX_PROMPT
from jaxbooth.errors import UserError
from jaxbooth.prng import MAX_SEED
from jaxbooth.runs.sample_requests import (
    FOLDER,
    ID,
    MAX_IMAGES,
    RequestFiles,
    SampleRequest,
    ask,
    request_ids,
)
from jaxbooth.storage.files import remove_tree
from jaxbooth.storage.text import read_text
from jaxbooth.ui.job import JobFiles, job_names
from jaxbooth.ui.numbers import number_in_form, number_in_path
from jaxbooth.ui.pages.run_samples import ImageView, image_side, send_tile
from jaxbooth.ui.parts import render_part
from jaxbooth.ui.render import segment
from jaxbooth.ui.roots import NotFound
from jaxbooth.ui.run_list import RunSummary
from jaxbooth.ui.run_view import saved_steps
from jaxbooth.ui.sample_tiles import Tile, Tiles
from jaxbooth.ui.state import Server, server_of

JOB = "sample-"  # begins the names of jobs that generate images
SHOWN = 12  # of all requests, the newest
MAX_STEP = 10**8  # as `config.limits.Step`
MAX_ERROR = 2000  # characters of a sentence that is shown
WORDS = {
    "queued": "waits for its turn",
    "running": "is being generated",
    "stopped": "was stopped",
    "killed": "was killed",
    "failed": "failed",
    "done": "done",
}


class OwnSamples(NamedTuple):
    """What came of one prompt.

    Attributes:
        words: the state, in words; empty once there are images.
        error: why there are none.
        is_stuck: it waits for a training that does not run.
        is_running: it cannot be removed before it was stopped.
    """

    id: str
    prompt: str
    facts: str
    words: str
    error: str
    images: list[ImageView]
    is_stuck: bool = False
    is_running: bool = False


def own_part(server: Server, run: RunSummary, _request: Request) -> Markup:
    """Returns the newest requests with what came of them."""
    jobs = [name.removeprefix(JOB) for name in job_names(run.folder.root) if name.startswith(JOB)]
    asked = request_ids(run.folder.root)
    newest = sorted({*asked, *filter(ID.fullmatch, jobs)}, reverse=True)
    shown = [job_samples(server, run, id) if id in jobs else asked_samples(server, run, id) for id in newest[:SHOWN]]
    return render_part("watch_own.html", run=run, samples=shown, hidden=max(0, len(newest) - SHOWN))


def asked_samples(server: Server, run: RunSummary, id: str) -> OwnSamples:
    """Returns what came of a request to a run that trains."""
    files = RequestFiles.of(run.folder.root, id)
    prompt, facts, error, images = "", "", "", []
    with suppress(UserError, NotFound):
        server.roots.below(files.folder, files.request.name)
        request = files.read()
        prompt, facts = request.prompt, f"seed {request.seed}"
    with suppress(NotFound):
        tiles = own_tiles(server, run, id)
        prompt, step = tiles.prompts[0], tiles.settings.get("step", "")
        facts = f"step {step}, seed {tiles.settings.get('seed', '')}"
        images = own_images(run, id, [(tiles, tile) for tile in tiles.rows[0]])
    with suppress(UserError, NotFound):
        error = read_text(server.roots.below(files.folder, files.error.name))[:MAX_ERROR]
    is_waiting = not images and not error
    is_stuck = is_waiting and run.state != "running"
    words = "waits for the training to take it" if is_waiting else ""
    if is_stuck:
        words = "the training ended before it"
    return OwnSamples(id, prompt, facts, words, error, images, is_stuck)


def job_samples(server: Server, run: RunSummary, id: str) -> OwnSamples:
    """Returns what came of a job."""
    files = JobFiles.of(run.folder.root, JOB + id)
    job, state = files.read(), files.state() or "done"
    flags = dict(part.removeprefix("--").split("=", 1) for part in (job.argv if job else ()) if "=" in part)
    step = flags.get("step")
    images = []
    for path in job_images(server, run, id):
        with suppress(NotFound):
            tiles = server.tiles.get(path, None)
            images.append((tiles, tiles.rows[0][0]))
            step = tiles.settings.get("step", step)
    facts = f"{f'step {step}' if step else 'newest checkpoint'}, seed {flags.get('seed', '')}"
    error = (files.error() or "") if state == "failed" else ""
    words = "" if state == "done" else WORDS[state]
    shown = own_images(run, id, images)
    return OwnSamples(id, flags.get("prompt", ""), facts, words, error, shown, is_running=state == "running")


def own_images(run: RunSummary, id: str, tiles: list[tuple[Tiles, Tile]]) -> list[ImageView]:
    """Returns images with their addresses, each with the file's images that it is of."""
    address = f"/runs/{segment(run.name)}/own/{id}"
    return [ImageView(f"{address}/{index}?v={of.version}", tile) for index, (of, tile) in enumerate(tiles)]


def own_tiles(server: Server, run: RunSummary, id: str) -> Tiles:
    """Returns the images of a request's answer.

    Raises:
        NotFound: there is none, it cannot be read, or leads elsewhere.
    """
    files = RequestFiles.of(run.folder.root, id)
    return server.tiles.get(server.roots.below(files.folder, files.answer.name), image_side(run))


def job_images(server: Server, run: RunSummary, id: str) -> list[Path]:
    """Returns the files of a job's images, in order; those that lead elsewhere are left out."""
    folder, paths = run.folder.root / FOLDER / id, []
    with suppress(OSError):
        for name in sorted(os.listdir(folder))[:MAX_IMAGES]:
            with suppress(NotFound):
                path = server.roots.below(folder, name)
                paths += [path] if path.is_file() and path.suffix == ".png" else []
    return paths


async def image(request: Request) -> Response:
    """Sends one image."""
    server, id = server_of(request), request_id(request)
    index, name = number_in_path(request.path_params["index"]), request.path_params["name"]

    def tile() -> tuple[Tiles, int]:
        run = server.run(name)
        paths = job_images(server, run, id)
        if not paths:
            return own_tiles(server, run, id), index
        if index >= len(paths):
            raise NotFound(str(index))
        return server.tiles.get(paths[index], None), 0

    tiles, column = await asyncio.to_thread(tile)
    return send_tile(tiles, 0, column)


def request_id(request: Request) -> str:
    """Returns the request that an address names.

    Raises:
        NotFound: it is no name of one.
    """
    id = request.path_params["id"]
    if not ID.fullmatch(id):
        raise NotFound(id)
    return id


def checkpoints_part(_server: Server, run: RunSummary, _request: Request) -> Markup:
    """Returns the choice of a checkpoint."""
    return render_part("watch_checkpoints.html", run=run, steps=saved_steps(run.folder))


async def create(request: Request) -> Response:
    """Asks for images."""
    server, form = server_of(request), await request.form()
    typed = {key: str(form.get(key, "")) for key in ("prompt", "seed", "num", "step")}
    requests_folder(server, request.path_params["name"])
    await asyncio.to_thread(ask_for, server.run(request.path_params["name"]), typed)
    return changed()


def requests_folder(server: Server, name: str) -> Path:
    """Returns the folder of a run's requests, which may not be there yet.

    Raises:
        NotFound: there is no such run, or the folder leads elsewhere.
    """
    folder = server.roots.run(name).root / FOLDER
    if folder.is_symlink():
        raise NotFound(name)
    return folder


def changed() -> Response:
    """Answers that what is shown of the requests has changed."""
    return Response(status_code=204, headers={"hx-trigger": "changed-samples"})


def ask_for(run: RunSummary, typed: dict[str, str]) -> None:
    """Asks the training for images, or queues a job that generates them from a checkpoint.

    Raises:
        UserError: what was typed cannot be used, another process trains, or there is no checkpoint.
    """
    prompt = " ".join(typed["prompt"].split())
    if not 0 < len(prompt) <= MAX_PROMPT:
        raise UserError(f"The prompt must have 1 to {MAX_PROMPT} characters; say what the images should show.")
    seed = number_in_form(typed["seed"], "The seed", 0, MAX_SEED)
    num = number_in_form(typed["num"], "The number of images", 1, MAX_IMAGES)
    if run.state == "elsewhere":
        raise UserError(f"{run.name} is trained by a process that was not started here; ask again when it has ended.")
    if run.state == "running":
        ask(run.folder.root, SampleRequest(prompt, seed, num))
        return
    steps = saved_steps(run.folder)
    if not steps:
        raise UserError(f"{run.name} has no checkpoint yet; start it, and sample while it trains.")
    step = number_in_form(typed["step"], "The checkpoint's step", 1, MAX_STEP) if typed["step"] else None
    if step is not None and step not in steps:
        raise UserError(f"{run.name} has no checkpoint of step {step}; choose one that is there.")
    id = str(time.time_ns())
    folder = run.folder.root / FOLDER / id
    argv = ["sample", str(run.folder.root), f"--prompt={prompt}", f"--seed={seed}", f"--num={num}"]
    argv += [f"--step={step}"] if step else []
    JobFiles.of(run.folder.root, JOB + id).enqueue([*argv, f"--out={folder}"])


async def remove(request: Request) -> Response:
    """Stops a job that generates images, or removes a request and what came of it."""
    server, id = server_of(request), request_id(request)
    await asyncio.to_thread(remove_samples, requests_folder(server, request.path_params["name"]).parent, id)
    return changed()


def remove_samples(run: Path, id: str) -> None:
    """Stops a job, or removes a request's files."""
    job, files = JobFiles.of(run, JOB + id), RequestFiles.of(run, id)
    if job.state() == "running":
        job.stop()
        return
    for path in (job.job, job.log, job.exit, job.lock, files.request, files.answer, files.error):
        path.unlink(missing_ok=True)
    remove_tree(files.folder / id)


ROUTES = [
    Route("/runs/{name}/sample-requests", create, methods=["POST"]),
    Route("/runs/{name}/own/{id}/remove", remove, methods=["POST"]),
    Route("/runs/{name}/own/{id}/{index}", image),
]
