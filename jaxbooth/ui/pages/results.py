"""What is taken away from a run: exports and samples as downloads, an evaluation, a report."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.export.export import FORMATS, adapter_format
from jaxbooth.report.run_data import EVALUATION
from jaxbooth.runs.checkpoint import checkpoint_steps
from jaxbooth.runs.folder import RunFolder
from jaxbooth.storage.files import remove_tree
from jaxbooth.ui.archive import download, files_in, zip_response
from jaxbooth.ui.job import JobFiles, JobState, changing
from jaxbooth.ui.render import page, segment
from jaxbooth.ui.roots import NotFound, is_child_name
from jaxbooth.ui.run_list import RunSummary
from jaxbooth.ui.state import server_of

EXPORTS = "exports"  # in a run folder: FORMAT-STEP/NAME holds what the page has exported
EVALUATE = "evaluate"  # the name of the job that evaluates
WHAT_IT_IS = {
    "lora": "Two LoRA files: for diffusers, and for ComfyUI, A1111, Forge and kohya's tools",
    "loha": "A LoHa file in LyCORIS' layout",
    "lokr": "A LoKr file in LyCORIS' layout, which diffusers reads as well",
    "embeddings": "The new words alone",
    "diffusers": "A whole model, as a folder for diffusers",
    "single-file": "A whole model in one file, for A1111, Forge and ComfyUI",
}


class ExportRow(NamedTuple):
    """A format in which a run can be taken away.

    Attributes:
        text: what it is.
        state: of the job that makes it.
        is_ready: it can be downloaded.
        message: why it could not be made.
    """

    name: str
    text: str
    state: JobState | None
    is_ready: bool
    message: str


async def show(request: Request) -> Response:
    """Shows what can be taken away."""
    run = server_of(request).run(request.path_params["name"])
    step = chosen_step(run.folder, request.query_params.get("step"))
    return await results(request, run, step)


async def results(request: Request, run: RunSummary, step: int | None) -> Response:
    """Fills the part of the page with the exports of a step."""
    view = await asyncio.to_thread(results_view, run, step)
    return page(request, "results.html", **view)


def results_view(run: RunSummary, step: int | None) -> dict[str, Any]:
    """Returns what the template shows."""
    root = run.folder.root
    evaluation = JobFiles.of(root, EVALUATE)
    state = evaluation.state()
    return {
        "run": run,
        "step": step,
        "steps": checkpoint_steps(run.folder.checkpoints),
        "exports": list(export_rows(run.folder, run.progress.config, step)) if step is not None else [],
        "evaluation_state": state,
        "evaluation_message": evaluation.error() if state == "failed" else None,
        "evaluated": (root / EVALUATION).is_file(),
        "has_samples": run.progress.sample is not None,
    }


def export_rows(run: RunFolder, config: Config | None, step: int) -> Iterator[ExportRow]:
    """Yields the formats that hold what a run trains."""
    for name in suitable_formats(config) if config else ():
        files = JobFiles.of(run.root, export_job(name, step))
        state = files.state()
        message = files.error() or "" if state == "failed" else ""
        yield ExportRow(name, WHAT_IT_IS[name], state, export_folder(run, name, step).is_dir(), message)


def suitable_formats(config: Config) -> list[str]:
    """Returns the names of the formats that hold what a run trains, those for its adapters first."""
    whole = [name for name, format in FORMATS.items() if format.is_whole_model]
    adapters = [adapter_format(config.lora.kind)] if config.lora.rank else []
    tokens = ["embeddings"] if config.text.placeholder_tokens else []
    return [*adapters, *tokens, *whole]


def export_job(format: str, step: int) -> str:
    """Returns the name of the job that exports."""
    return f"export-{format}-{step}"


def export_folder(run: RunFolder, format: str, step: int) -> Path:
    """Returns the folder of an export; its name is the run's, after which files are named."""
    return run.root / EXPORTS / f"{format}-{step}" / run.root.name


def chosen_step(run: RunFolder, given: str | None) -> int | None:
    """Returns the step of a checkpoint: the one that is named, or the newest; None where there is none.

    Raises:
        NotFound: there is no such checkpoint.
    """
    steps = checkpoint_steps(run.checkpoints)
    if not given:
        return steps[-1] if steps else None
    if not re.fullmatch(r"[0-9]{1,9}", given) or int(given) not in steps:
        raise NotFound(given)
    return int(given)


def required_step(run: RunFolder, given: str | None) -> int:
    """Returns the step of a checkpoint.

    Raises:
        UserError: the run has none yet.
    """
    step = chosen_step(run, given)
    if step is None:
        raise UserError(f"{run.root.name} has no checkpoint yet; train it until its first one.")
    return step


async def export(request: Request) -> Response:
    """Puts an export into the queue; it needs no device."""
    run, form = server_of(request).run(request.path_params["name"]), await request.form()
    step, format = required_step(run.folder, str(form.get("step", ""))), str(form.get("format", ""))
    if run.progress.config is None or format not in suitable_formats(run.progress.config):
        raise UserError(f"{run.name} cannot be exported as {format!r}.")
    await asyncio.to_thread(enqueue_export, run.folder, format, step)
    return await results(request, run, step)


def enqueue_export(run: RunFolder, format: str, step: int) -> None:
    """Removes a former export, and puts a new one into the queue.

    Raises:
        UserError: it waits or runs already, or its folder is a link.
    """
    out = export_folder(run, format, step)
    for folder in (out.parents[1], out.parent):
        if folder.is_symlink():
            raise UserError(f"{folder} is a link, through which files elsewhere would be replaced; remove the link.")
    argv = ["export", str(run.root), "--out", str(out), "--format", format, "--step", str(step)]
    with changing:
        JobFiles.of(run.root, export_job(format, step)).enqueue(argv, needs_device=False)
        remove_tree(out)


async def evaluate(request: Request) -> Response:
    """Puts an evaluation of the newest checkpoint into the queue."""
    run = server_of(request).run(request.path_params["name"])
    step = required_step(run.folder, None)
    JobFiles.of(run.folder.root, EVALUATE).enqueue(["evaluate", str(run.folder.root)])
    return await results(request, run, step)


async def send_export(request: Request) -> Response:
    """Sends an export that the page has made."""
    server, format = server_of(request), request.path_params["format"]
    run = server.run(request.path_params["name"])
    step = required_step(run.folder, request.path_params["step"])
    if format not in FORMATS:
        raise NotFound(format)
    folder = server.roots.below(run.folder.root, f"{EXPORTS}/{format}-{step}/{run.name}")
    return await asyncio.to_thread(download, folder, run.name)


async def send_samples(request: Request) -> Response:
    """Sends all sample grids of a run, and the images that were asked for."""
    run = server_of(request).run(request.path_params["name"])
    return await asyncio.to_thread(samples_zip, run)


def samples_zip(run: RunSummary) -> Response:
    """Returns a zip of a run's samples.

    Raises:
        NotFound: there are none.
    """
    root = run.folder.root
    folders = [root / "samples", root / "sample_requests"]
    files = [file for folder in folders for file in files_in(folder) if file.suffix == ".png"]
    if not files:
        raise NotFound(run.name)
    return zip_response(((file, f"{run.name}/{file.relative_to(root)}") for file in files), f"{run.name}-samples")


async def show_report(request: Request) -> Response:
    """Leads to the report of one run."""
    name = request.path_params["name"]
    if not is_child_name(name):
        raise NotFound(name)
    return RedirectResponse(f"/compare?run={segment(name)}", 303)


ROUTES = [
    Route("/runs/{name}/results", show),
    Route("/runs/{name}/exports", export, methods=["POST"]),
    Route("/runs/{name}/exports/{format}/{step}", send_export),
    Route("/runs/{name}/evaluate", evaluate, methods=["POST"]),
    Route("/runs/{name}/samples.zip", send_samples),
    Route("/runs/{name}/report", show_report),
]
