"""A server of `jaxbooth ui` in this process, and a client that speaks to it as a browser or an attacker would."""

import http.client
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import pytest
import uvicorn

from jaxbooth.storage.lock import locked
from jaxbooth.ui.app import make_app
from jaxbooth.ui.roots import Roots
from jaxbooth.ui.server import PageServer, bind
from jaxbooth.ui.tokens import read_token
from tests.made_up_runs import made_up_run

SECONDS = 120  # a machine may be busy
BOUNDARY = "a-boundary-that-no-file-holds"


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


@dataclass(frozen=True)
class UiServer:
    """A running server.

    Attributes:
        roots: its folders.
    """

    port: int
    token: str
    roots: Roots

    @property
    def address(self) -> str:
        """The address with the token, as it is printed."""
        return f"http://127.0.0.1:{self.port}/?token={self.token}"

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Sends exactly what is given: neither a token nor an origin is added."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, names, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        """Asks for a path with the token."""
        return self.send("GET", path, None, self.bearer | headers)

    def post(self, path: str, form: Mapping[str, object] | None = None, **headers: str) -> Answer:
        """Sends a form with the token."""
        kind = {"content-type": "application/x-www-form-urlencoded"}
        return self.send("POST", path, urlencode(form or {}, doseq=True).encode(), self.bearer | kind | headers)

    def upload(self, path: str, name: str, content: bytes, field: str = "photo") -> Answer:
        """Sends a file as a browser's form does."""
        quoted = name.replace('"', "%22")
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{quoted}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
        kind = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
        return self.send("POST", path, body, self.bearer | kind)

    @property
    def bearer(self) -> dict[str, str]:
        """The token as a program sends it."""
        return {"authorization": f"Bearer {self.token}"}


@contextmanager
def ui_server(root: Path, folders: tuple[Path, ...] = (), devices: tuple[str, ...] = ()) -> Generator[UiServer]:
    """Serves a root while the block runs."""
    roots = Roots.open(root, folders)
    token = read_token(roots.server / "token")
    with bind("127.0.0.1", 0) as listening:
        app = make_app(roots, token, device_sets=devices)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        server = PageServer(config, app.state.server.changes)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield UiServer(listening.getsockname()[1], token, roots)
        finally:
            server.should_exit = True
            thread.join(SECONDS)


@contextmanager
def idle_ui_server(root: Path) -> Generator[UiServer]:
    """Serves a root whose queue starts nothing, because another process trains in the run `elsewhere`."""
    made_up_run(root / "elsewhere", logged=7)
    with locked(root / "elsewhere", on_loss=pytest.fail), ui_server(root) as running:
        yield running
