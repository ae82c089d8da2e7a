"""The page that prepares a new run: its form, the contact sheet of its photos, and how it is created."""

import asyncio
import hashlib
import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import EMBEDDED_SUBJECT, Config
from jaxbooth.config.section import flatten
from jaxbooth.errors import UserError
from jaxbooth.ui.base_models import image_sides, model_choices, relative_label, shipped_choices
from jaxbooth.ui.command_line import command_parts, yaml_text
from jaxbooth.ui.draft import OWN_KEYS, PROMPTS, Draft, Form, one, read_fields
from jaxbooth.ui.fields import FieldGroup, field_groups, fields_by_key, format_field
from jaxbooth.ui.form_request import SET, draft_of, read_form
from jaxbooth.ui.new_run import create_run
from jaxbooth.ui.pages.runs import enqueue_training
from jaxbooth.ui.photos import count_photos, photo_sets
from jaxbooth.ui.planner import known_topologies
from jaxbooth.ui.render import page, segment
from jaxbooth.ui.state import Server, server_of

# Keys that the short form shows; all others are in the drawer.
SHORT = (
    *OWN_KEYS, "data.instance_prompt", "data.class_prompt", "data.resolution", "data.crop", "data.flip", "data.masks",
    "data.buckets", "lora.rank", "lora.kind", "text.placeholder_tokens", "prior.method", "train.steps",
)  # fmt: skip
EMPTY: Form = {}


async def show(request: Request) -> Response:
    """Shows the page; `?from=RUN` takes the settings of another run."""
    server, form = server_of(request), EMPTY
    name = request.query_params.get("from")
    if name is not None:
        form = form_of_run(server, name)
    view = await asyncio.to_thread(page_view, server, form)
    return page(request, "new.html", **view)


def form_of_run(server: Server, name: str) -> Form:
    """Returns the form that makes a run like another one; its uploaded photos can be changed again."""
    config = load_config(server.roots.run(name).config)
    folder = config.data.instance_dir
    photos = f"{SET}{folder.name}" if folder in photo_sets(server.roots) else ""
    return {"base": [f"run:{name}"], "photos": [photos]}


async def change_base(request: Request) -> Response:
    """Shows the form again with what the chosen base model suggests; what was changed by hand stays."""
    server, form = server_of(request), await read_form(request)
    before = await asyncio.to_thread(draft_of, server, form, "base_was")
    return page(request, "new_page.html", **await asyncio.to_thread(page_view, server, kept_changes(form, before)))


def kept_changes(form: Form, before: Draft) -> Form:
    """Returns a form without the values that were those of its former base."""
    kept = {name: values for name, values in form.items() if not name.startswith("k.") or name == "k.model"}
    for key in read_fields(form, before.base, before.trained):
        name = fields_by_key()[key].name
        kept[name] = form[name]
    if one(form, "trained") == before.start.trained:
        kept.pop("trained", None)
    return kept


def page_view(server: Server, form: Form) -> dict[str, Any]:
    """Returns what the page is filled with."""
    draft = draft_of(server, without_name(form))
    found = server.finder.look()
    roots = (server.roots.runs, *server.roots.others)
    base = flatten(draft.base)
    return {
        "draft": draft,
        "form": {name: one(form, name) for name in form},
        "tab": one(form, "tab") or secrets.token_hex(8),
        "shipped": shipped_choices(),
        "models": model_choices(found.models, roots),
        "photo_sets": [(path.name, count_photos(path)) for path in photo_sets(server.roots)],
        "folders": [(str(path), relative_label(path, roots)) for path in found.photos],
        "own_photos": own_photos(draft),
        "fields": fields_by_key(),
        "values": {key: shown_text(form, draft, key) for key in fields_by_key()},
        "defaults": {key: format_field(base[key], field.widget) for key, field in fields_by_key().items()},
        "groups": drawer(),
        "topologies": known_topologies(),
        **outcome_of(draft, form),
    }


def shown_text(form: Form, draft: Draft, key: str) -> str:
    """Returns the text of a field: as it was typed, else the value of the base."""
    field = fields_by_key()[key]
    if field.name in form:
        return "\n".join(form[field.name]) if field.widget == "choices" else form[field.name][-1]
    if key in PROMPTS:
        return ""
    value = flatten(draft.base)[key]
    if key == "lora.rank" and value is None:
        value = draft.config.lora.rank
    return format_field(value, field.widget)


def own_photos(draft: Draft) -> str:
    """Says which photos the base has itself; empty if none."""
    folder = draft.start.config.data.instance_dir
    if folder is None:
        return "several subjects, as in the run" if draft.start.config.data.subjects else ""
    return "the built-in emoji cat" if folder == EMBEDDED_SUBJECT else f"as before: {folder}"


def drawer() -> list[FieldGroup]:
    """Returns the fields that the short form does not have."""
    groups = [
        group._replace(fields=tuple(field for field in group.fields if field.key not in SHORT))
        for group in field_groups()
    ]
    return [group for group in groups if group.fields]


async def check(request: Request) -> Response:
    """Shows what the form means: what is wrong with it, and how others would type it."""
    server, form = server_of(request), await read_form(request)
    return page(request, "new_outcome.html", **await asyncio.to_thread(outcome_view, server, form))


def outcome_view(server: Server, form: Form) -> dict[str, Any]:
    """Returns what the outcome is filled with."""
    return outcome_of(draft_of(server, without_name(form)), form)


def without_name(form: Form) -> Form:
    """Returns a form without the name that was suggested, for which there may be a better one now."""
    return {name: values for name, values in form.items() if name != "suggested"}


def outcome_of(draft: Draft, form: Form) -> dict[str, Any]:
    """Returns what a draft means."""
    config, is_complete = draft.config, not draft.problem and not draft.missing
    return {
        "draft": draft,
        "command": command_parts(config, draft.start.source) if is_complete else None,
        "yaml": yaml_text(config) if is_complete else "",
        "is_complete": is_complete,
        "sheet_version": digest(config.data, config.text, config.seed, config.model),
        "plan_version": "" if draft.problem else digest(planned(config)),
        "placeholder_prompts": placeholder_prompts(draft),
    }


def placeholder_prompts(draft: Draft) -> tuple[str, str]:
    """Returns the prompts of subject and class where nothing is typed; empty where they are not known yet."""
    if "what they show" in draft.missing or draft.config.data.subjects:
        return "", ""
    data = draft.config.data
    return data.instance_prompt or "", data.class_prompt or ""


def planned(config: Config) -> Config:
    """Returns a configuration without what no plan depends on, so that it is not asked for again."""
    return config.model_copy(update={"run_dir": "", "seed": 0})


def digest(*parts: Any) -> str:
    """Returns a short text that differs where the parts do."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


async def create(request: Request) -> Response:
    """Creates the run, and starts it if that is asked for."""
    server, form = server_of(request), await read_form(request)
    name = await asyncio.to_thread(create_and_start, server, form)
    return Response(status_code=204, headers={"hx-redirect": f"/runs/{segment(name)}"})


def create_and_start(server: Server, form: Form) -> str:
    """Creates a run and returns its name.

    Raises:
        UserError: something is missing, wrong, or there is such a run already.
    """
    draft = draft_of(server, form)
    if draft.missing:
        raise UserError(f"Still missing: {' and '.join(draft.missing)}.")
    if draft.problem:
        raise UserError(draft.problem)
    found = server.sheets.make(draft.config, image_sides(draft.config))
    if not found.total:
        raise UserError("Still missing: photos.")
    create_run(server.roots, draft.name, draft.config)
    if one(form, "start"):
        enqueue_training(server, draft.name)
    return draft.name


ROUTES = [
    Route("/new", show),
    Route("/new/form", change_base, methods=["POST"]),
    Route("/new/check", check, methods=["POST"]),
    Route("/new/create", create, methods=["POST"]),
]
