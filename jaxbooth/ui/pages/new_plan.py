"""What `jaxbooth plan` says of a new run, beside its form."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jaxbooth.console.numbers import format_duration, format_gib, format_significant
from jaxbooth.plan.report import MIN_SHOWN_BYTES
from jaxbooth.ui.draft import Draft, Form, one
from jaxbooth.ui.form_request import draft_of, read_form
from jaxbooth.ui.planner import LOCAL, Devices, PlanError, Superseded
from jaxbooth.ui.render import page
from jaxbooth.ui.state import Server, server_of

SHOWN_PARTS = 3  # of the memory
KINDS = {
    "parameters": "trained weights",
    "optimizer": "optimizer",
    "frozen": "frozen weights",
    "latents": "latents",
    "gradients": "gradients",
    "activations": "activations",
}
NOT_HERE = "The model is not on this machine yet. The run fetches it when it starts, and checks then whether it fits."
EMPTY: dict[str, Any] = {"problem": "", "plan": None, "devices": None, "rows": [], "note": ""}


async def plan(request: Request) -> Response:
    """Shows the plan of the form."""
    server, form = server_of(request), await read_form(request)
    question = server.planner.ask(one(form, "tab"))
    draft = await asyncio.to_thread(draft_of, server, form)
    try:
        view = await make_view(server, form, draft, question)
    except Superseded:
        return Response(status_code=204)
    except PlanError as error:
        # What the model is like is not fetched to plan with it.
        is_elsewhere = "--offline" in str(error) and not draft.config.offline
        view = {"note": NOT_HERE} if is_elsewhere else {"problem": str(error)}
    view = EMPTY | view
    return page(request, "new_plan.html", 200, **view)


async def make_view(server: Server, form: Form, draft: Draft, question: object) -> dict[str, Any]:
    """Returns what the plan is filled with."""
    topology, devices, is_timed = one(form, "topology"), None, bool(one(form, "measure"))
    if draft.problem:
        return {"note": "Once the settings are valid, this says whether the run fits and how long it takes."}
    if not topology:
        is_training = any(run.state in ("running", "elsewhere") for run in await asyncio.to_thread(server.runs.all))
        devices = await server.planner.devices(is_training)
        if devices is None or (is_training and is_timed):
            return {"note": "A run is training, so this machine's devices are left alone; name some below."}
        topology = LOCAL if is_timed else devices.topology
    answer = await server.planner.plan(one(form, "tab"), question, draft.config, topology)
    return {"plan": answer, "devices": devices, "rows": plan_rows(answer, devices, draft)}


def plan_rows(plan: dict[str, Any], devices: Devices | None, draft: Draft) -> list[tuple[str, str]]:
    """Returns what a plan says, line by line."""
    limit, needed = plan["hbm_limit_bytes"], max(plan["hbm_bytes"], plan["encoding_bytes"])
    where = f"{devices.count} × {devices.kind}" if devices else plan["topology"]
    rows = [("devices", where), ("memory", f"{format_gib(needed)}{f' of {format_gib(limit)}' if limit else ''}")]
    parts = sorted(plan["memory"].items(), key=lambda item: -item[1])[:SHOWN_PARTS]
    rows.append(
        (
            "most of it",
            ", ".join(f"{KINDS.get(kind, kind)} {format_gib(size)}" for kind, size in parts if size >= MIN_SHOWN_BYTES),
        )
    )
    steps = draft.config.train.steps
    if plan["hours"] is not None:
        rows.append(("time", f"about {format_duration(plan['hours'] * 3600)} for {steps} steps"))
        rows.append(("speed", f"{format_significant(plan['images_per_second'])} images per second"))
    if plan["largest_batch_per_chip"]:
        rows.append(("largest batch", f"{plan['largest_batch_per_chip']} photos per device"))
    return rows


ROUTES = [Route("/new/plan", plan, methods=["POST"])]
