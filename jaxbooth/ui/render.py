"""Templates: every value is escaped, and how numbers and times are written is decided here."""

import importlib.metadata
import time
from functools import cache
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from jaxbooth.console.numbers import format_duration, format_significant
from jaxbooth.errors import printable

STATE_WORDS = {
    "new": "not started",
    "queued": "waiting",
    "running": "training",
    "elsewhere": "trained by another process",
    "done": "done",
    "stopped": "stopped",
    "failed": "failed",
    "killed": "was killed",
    "damaged": "cannot be read",
}


@cache
def environment() -> Environment:
    """Returns the templates."""
    templates = Environment(
        loader=PackageLoader("jaxbooth.ui", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "segment": segment,
        "duration": format_duration,
        "significant": format_significant,
        "ago": format_ago,
        "printable": printable,
    }
    shared: dict[str, Any] = templates.globals  # which macros see, too
    shared |= {"version": importlib.metadata.version("jaxbooth"), "state_words": STATE_WORDS}
    return templates


def page(request: Request, template: str, status: int = 200, **view: Any) -> HTMLResponse:
    """Returns a page, or a part of one."""
    view |= {"here": request.url.path}
    return HTMLResponse(encodable(environment().get_template(template).render(view)), status)


def encodable(text: str) -> str:
    """Returns text without what no page can hold: parts of file names that are not UTF-8."""
    return text.encode(errors="replace").decode()


def segment(text: Any) -> str:
    """Returns text as one segment of a URL's path."""
    return quote(str(text), safe="", errors="replace")


def format_ago(moment: float) -> str:
    """Writes how long ago a time was, in seconds since 1970."""
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
