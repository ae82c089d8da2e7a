"""What every request passes before it is answered: host, token, origin and size; and the headers of every answer."""

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL = ("localhost", "127.0.0.1", "::1")
MAX_FORM = 2**20  # bytes of a request
MAX_UPLOAD = 64 * 2**20  # bytes of a request that uploads a photo
UPLOADS = "/upload"  # at the end of the paths that take photos
YEAR = 365 * 24 * 3600
# Nothing inline, nothing from elsewhere. `blob:` shows photos that are not uploaded yet.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class TooLarge(Exception):
    """A request's body has more bytes than it may have."""


class Guard:
    """Answers requests that may not pass, and lets the others through.

    Only requests with the token pass. It comes once in the address, and from then on in a cookie, or with programs in
    an `Authorization: Bearer` header. A host that is not this one means that another site's name was made to lead
    here (DNS rebinding); an origin that is not this host, that another site's page sends the request.

    Args:
        hosts: names under which the server may be reached, in addition to those of this machine itself.
        any_address: it may be reached under every IP address.
    """

    def __init__(self, app: ASGIApp, token: str, hosts: Sequence[str] = (), any_address: bool = False):
        self._app, self._token = app, token
        self._hosts, self._any_address = (*LOCAL, *hosts), any_address
        self._cookie = "jaxbooth-" + hashlib.sha256(token.encode()).hexdigest()[:12]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or lets pass."""
        if scope["type"] != "http":  # the server's start and end; websockets do not exist here
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, with_headers(send))
            return
        await self._app(scope, limited(scope, receive), with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        """Returns the answer to a request that may not pass."""
        headers = Headers(scope=scope)
        if not self._is_known(headers.get("host", "")):
            return refused(403, "This address is not one that jaxbooth ui was started for (--host).")
        given = QueryParams(scope["query_string"]).get("token")
        if given is not None and scope["method"] == "GET" and scope["path"] == "/" and self._matches(given):
            return self._with_cookie()
        bearer = headers.get("authorization", "").partition("Bearer ")[2]
        cookie = cookie_parser(headers.get("cookie", "")).get(self._cookie, "")
        if not self._matches(bearer) and not self._matches(cookie):
            return refused(401, "Open the address that `jaxbooth ui` printed, with its token.")
        is_reading = scope["method"] in ("GET", "HEAD")
        if not is_reading and not self._matches(bearer) and not is_same_origin(headers):
            return refused(403, "This request comes from another site.")
        return refused(413, too_large(scope["path"])) if declared_size(headers) > max_body(scope["path"]) else None

    def _is_known(self, host: str) -> bool:
        """Whether a Host header names this server; the port differs behind a forwarded one."""
        name = host_name(host)
        if name in self._hosts:
            return True
        try:
            return self._any_address and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _matches(self, given: str) -> bool:
        """Compares with the token, in constant time."""
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _with_cookie(self) -> Response:
        """Takes the token out of the address, where a history or a screenshot would show it."""
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self._cookie, self._token, max_age=YEAR, httponly=True, samesite="lax")
        return answer


def host_name(host: str) -> str:
    """Returns the name in a Host header, without the port."""
    try:
        return (urlsplit("//" + host).hostname or "").lower()
    except ValueError:
        return ""


def is_same_origin(headers: Headers) -> bool:
    """Whether a request comes from a page of this server, which may lie behind a proxy that encrypts."""
    host = headers.get("host")
    return headers.get("origin") in (f"http://{host}", f"https://{host}")


def declared_size(headers: Headers) -> int:
    """Returns the bytes that a request announces; 0 if it does not."""
    size = headers.get("content-length", "0")
    return int(size) if size.isdecimal() else 0


def max_body(path: str) -> int:
    """Returns how many bytes a request to a path may have."""
    return MAX_UPLOAD if path.endswith(UPLOADS) else MAX_FORM


def too_large(path: str) -> str:
    """Says that a request is too large."""
    return f"This is too large: at most {max_body(path) >> 20} MiB can be sent at once."


def refused(status: int, sentence: str) -> Response:
    """Returns an answer of one sentence."""
    return PlainTextResponse(sentence + "\n", status)


def limited(scope: Scope, receive: Receive) -> Receive:
    """Counts the bytes of a request's body, also where it does not announce them."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_body(scope["path"]):
            raise TooLarge(too_large(scope["path"]))
        return message

    return counted


def with_headers(send: Send) -> Send:
    """Adds headers to answers; those that a page sets itself stay."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
