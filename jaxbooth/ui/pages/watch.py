"""The page of one run: its state, its curves and its log; the images are `run_samples`'s."""

import asyncio
from collections.abc import Callable
from typing import Any

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from jaxbooth.config.limits import MAX_PROMPT
from jaxbooth.config.load import dump_config, load_config, with_overrides
from jaxbooth.config.rules import check_config
from jaxbooth.config.run_config import first_conflict
from jaxbooth.config.section import flag
from jaxbooth.errors import UserError, printable
from jaxbooth.report.curves import Curve
from jaxbooth.runs.early_stopping import read_selection
from jaxbooth.runs.lock import has_result
from jaxbooth.runs.sample_requests import MAX_IMAGES
from jaxbooth.storage.files import write_text
from jaxbooth.ui.charts import chart_views
from jaxbooth.ui.file_cache import version_of
from jaxbooth.ui.job import JOBS, TRAIN, JobFiles
from jaxbooth.ui.numbers import number_in_form
from jaxbooth.ui.pages.own_samples import checkpoints_part, own_part
from jaxbooth.ui.pages.run_samples import samples_part
from jaxbooth.ui.pages.runs import answer, enqueue_training
from jaxbooth.ui.parts import Part, render_part, send_part
from jaxbooth.ui.render import page, segment
from jaxbooth.ui.roots import NotFound
from jaxbooth.ui.run_list import RunSummary
from jaxbooth.ui.run_view import activity, changed_settings, figures, next_length, saved_steps
from jaxbooth.ui.state import Server, server_of

MAX_STEPS = 10**8  # as `config.limits.TrainSteps`
LOG_LINES = 400  # that are shown
SHEET = "contact_sheet.png"
LINEAR, LOG = "linear", "log"

MakePart = Callable[[Server, RunSummary, Request], Markup]


async def show(request: Request) -> Response:
    """Shows the page."""
    server, name = server_of(request), request.path_params["name"]

    def view() -> dict[str, Any]:
        run = server.run(name)
        config = run.progress.config
        return {
            "run": run,
            "parts": {
                part: Part(part, f"/runs/{segment(run.name)}/{part}", changes, make(server, run, request))
                for part, (make, changes) in PARTS.items()
            },
            "settings": changed_settings(config) if config else [],
            "sheet": version_of(run.folder.root / SHEET),
            "longest_prompt": MAX_PROMPT,
            "most_images": MAX_IMAGES,
            "prompt": config.subjects[0].instance_prompt if config and config.subjects else "",
        }

    return page(request, "watch.html", **await asyncio.to_thread(view))


def part_of(name: str) -> Callable[[Request], Any]:
    """Returns what answers with one part of the page."""
    make, _ = PARTS[name]

    async def send(request: Request) -> Response:
        server = server_of(request)
        run_name = request.path_params["name"]
        content = await asyncio.to_thread(lambda: make(server, server.run(run_name), request))
        return send_part(request, content)

    return send


def state_part(_server: Server, run: RunSummary, _request: Request) -> Markup:
    """Returns name and state, and what can be done."""
    steps = saved_steps(run.folder)
    return render_part(
        "watch_state.html", run=run, saved=steps, offered=next_length(run), stopped_early=ends_early(run)
    )


def progress_part(server: Server, run: RunSummary, _request: Request) -> Markup:
    """Returns how far the run is."""
    curves = log_curves(server, run.name, "metrics.jsonl")
    return render_part("watch_progress.html", run=run, now=activity(run), figures=figures(run, curves))


def curves_part(server: Server, run: RunSummary, request: Request) -> Markup:
    """Returns the charts; `scale` is "log" or "linear"."""
    is_log = request.query_params.get("scale", LOG) != LINEAR
    curves = log_curves(server, run.name, "metrics.jsonl")
    measured = log_curves(server, run.name, "validation.jsonl")
    # The metrics of a step have those of its validation, too, but not at step 0.
    curves = {name: curve for name, curve in curves.items() if name not in measured}
    if run.progress.config and not run.progress.config.prior.uses_class_images:
        curves.pop("prior_loss", None)
    large, small = chart_views(curves | measured, is_log)
    return render_part("watch_curves.html", large=large, small=small)


def log_part(server: Server, run: RunSummary, _request: Request) -> Markup:
    """Returns the end of what the training printed."""
    files = JobFiles.of(run.folder.root, TRAIN)
    try:
        server.roots.below(run.folder.root / JOBS, files.log.name)
    except NotFound:
        return render_part("watch_log.html", run=run, lines=[])
    return render_part("watch_log.html", run=run, lines=list(map(printable, files.log_lines()[-LOG_LINES:])))


def log_curves(server: Server, name: str, file: str) -> dict[str, Curve]:
    """Returns the curves of one of a run's logs; none where it has none, or it leads elsewhere."""
    try:
        return server.metrics.read(server.roots.below(server.roots.run(name).root, file))
    except NotFound:
        return {}


def ends_early(run: RunSummary) -> bool:
    """Whether more steps alone would not continue a run, because its metrics have ended it."""
    config = run.progress.config
    try:
        stopped = read_selection(run.folder.selection).stopped_at
    except (UserError, OSError):
        return False
    return config is not None and stopped is not None and bool(config.evaluation.patience)


async def extend(request: Request) -> Response:
    """Lets a run train up to another number of steps, and queues it."""
    server, form = server_of(request), await request.form()
    typed = str(form.get("steps", ""))
    await asyncio.to_thread(extend_run, server, request.path_params["name"], typed)
    return await answer(request)


def extend_run(server: Server, name: str, typed: str) -> None:
    """Changes the number of a run's steps, and queues it.

    Raises:
        UserError: it waits or trains, its number of steps cannot be changed, or the number is too small.
    """
    run = server.run(name)
    if run.is_active:
        raise UserError(f"{name} waits or trains; stop it before you change its number of steps.")
    steps = number_in_form(typed, "The number of steps", max(run.progress.step, 1), MAX_STEPS)
    before = load_config(run.folder.config)
    after = with_overrides(before, {"train.steps": steps})
    check_config(after)
    conflict = first_conflict(before, after)
    if conflict and has_result(run.folder):
        raise UserError(f"{name} cannot have another {flag(conflict[0])}: what is trained so far depends on it.")
    if ends_early(run) and steps > run.progress.step:
        raise UserError(f"{name} has ended early, as its metrics told; raise evaluation.patience to train on.")
    write_text(run.folder.config, dump_config(after))
    enqueue_training(server, name)


async def contact_sheet(request: Request) -> Response:
    """Sends the training images as they are trained on."""
    server = server_of(request)
    run = server.roots.run(request.path_params["name"])
    path = server.roots.below(run.root, SHEET)
    if not path.is_file():
        raise NotFound(SHEET)
    return FileResponse(path, media_type="image/png", headers={"cache-control": "private, max-age=31536000, immutable"})


# Name of a part -> what makes it, and the changes after which a page asks for it.
PARTS: dict[str, tuple[MakePart, tuple[str, ...]]] = {
    "state": (state_part, ("state",)),
    "progress": (progress_part, ("metrics", "log", "state")),
    "samples": (samples_part, ("samples", "state")),
    "curves": (curves_part, ("metrics",)),
    "checkpoints": (checkpoints_part, ("state",)),
    "own": (own_part, ("samples", "state")),
    "log": (log_part, ("log", "state")),
}

ROUTES = [
    Route("/runs/{name}", show),
    *(Route(f"/runs/{{name}}/{part}", part_of(part)) for part in PARTS),
    Route("/runs/{name}/extend", extend, methods=["POST"]),
    Route("/runs/{name}/contact-sheet", contact_sheet),
]
