"""Parts of a page that are asked for again when something has changed, and sent only if they differ."""

import hashlib
from typing import Any, NamedTuple

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from jaxbooth.ui.render import encodable, environment

SEEN = "seen"  # the field in which a page says what it shows


class Part(NamedTuple):
    """A part as it is shown first.

    Attributes:
        id: of its element.
        address: that it is asked for again at.
        changes: names of the changes that make the page ask.
    """

    id: str
    address: str
    changes: tuple[str, ...]
    content: Markup

    @property
    def trigger(self) -> str:
        """The changes, in htmx's words."""
        return ", ".join(f"changed-{change} from:body" for change in self.changes)


def render_part(template: str, **view: Any) -> Markup:
    """Returns a part, and with it what it was made of in a word, which comes back with the next request."""
    content = encodable(environment().get_template(template).render(view))
    return Markup(content) + Markup('<input type="hidden" name="{}" value="{}">').format(SEEN, digest(content))


def send_part(request: Request, content: Markup) -> Response:
    """Answers with a part, or that the page shows it already, so that nothing in it loses its place or its focus."""
    seen = request.query_params.get(SEEN)
    if seen and content.endswith(Markup('name="{}" value="{}">').format(SEEN, seen)):
        return Response(status_code=204)
    return HTMLResponse(content)


def digest(content: str) -> str:
    """Returns a short name of a content."""
    return hashlib.sha256(content.encode()).hexdigest()[:16]
