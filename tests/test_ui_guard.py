"""Who may speak to `jaxbooth ui`: the token, the host, the origin, and the headers that bind a page."""

import os
import stat

import pytest

from jaxbooth.ui.guard import MAX_FORM, Guard
from jaxbooth.ui.tokens import read_token
from tests.ui_server import UiServer, ui_server


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> UiServer:
    """A server of an empty root."""
    with ui_server(tmp_path_factory.mktemp("runs")) as running:
        yield running


def cookie_of(server: UiServer) -> str:
    """Returns the cookie that a browser has after it opened the printed address."""
    answer = server.send("GET", f"/?token={server.token}")
    assert answer.status == 303
    return answer.headers["set-cookie"].split(";")[0]


@pytest.mark.parametrize("path", ["/", "/events", "/static/script.js", "/runs/dog", "/?token=wrong", "/runs?token="])
def test_nothing_is_told_without_the_token(server, path):
    answer = server.send("GET", path)
    assert answer.status == 401
    assert "Open the address that `jaxbooth ui` printed" in answer.text


def test_the_token_leaves_the_address_for_a_cookie_that_scripts_cannot_read(server):
    answer = server.send("GET", f"/?token={server.token}")
    assert answer.headers["location"] == "/"
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert server.send("GET", "/", headers={"cookie": cookie_of(server)}).status == 200


def test_a_cookie_of_another_server_is_not_enough(server):
    name = cookie_of(server).split("=")[0]
    assert server.send("GET", "/", headers={"cookie": f"{name}=guess"}).status == 401


@pytest.mark.parametrize("origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", "https://", "http://["])
def test_another_sites_page_cannot_change_anything(server, origin):
    headers = {"cookie": cookie_of(server)} | ({"origin": origin} if origin else {})
    answer = server.send("POST", "/runs/dog/delete", b"", headers)
    assert (answer.status, answer.text) == (403, "This request comes from another site.\n")


def test_the_servers_own_page_can(server):
    headers = {"cookie": cookie_of(server), "origin": f"http://127.0.0.1:{server.port}"}
    assert server.send("POST", "/runs/dog/delete", b"", headers).status == 404  # there is no such run


FOREIGN = ["evil.example", "evil.example:7860", "127.0.0.1.evil.example", "", "[", "192.168.0.9"]


@pytest.mark.parametrize("host", FOREIGN)
def test_a_name_that_was_made_to_lead_here_is_refused(server, host):
    assert server.send("GET", "/", headers=server.bearer | {"host": host}).status == 403


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:7860", "LOCALHOST"])
def test_a_forwarded_port_may_have_any_number(server, host):
    assert server.get("/", host=host).status == 200


def test_addresses_are_let_in_only_where_all_are_listened_at():
    guard = Guard(lambda *_: None, "token", ["box"], any_address=True)
    assert guard._is_known("192.168.0.9:7860")
    assert guard._is_known("box:7860")
    assert not guard._is_known("evil.example")
    assert not Guard(lambda *_: None, "token", ["box"])._is_known("192.168.0.9")


@pytest.mark.parametrize("path", ["/", "/nothing", "/static/ui.css"])
def test_a_page_runs_no_script_but_its_own_and_asks_nobody_else(server, path):
    headers = server.get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_a_large_form_is_refused_before_it_is_read(server):
    answer = server.send("POST", "/runs/dog/move", None, server.bearer | {"content-length": str(MAX_FORM + 1)})
    assert (answer.status, answer.text) == (413, "This is too large: at most 1 MiB can be sent at once.\n")


def test_a_form_that_hides_its_size_is_refused_once_it_is_too_large(server):
    (server.roots.runs / "dog").mkdir(exist_ok=True)
    (server.roots.runs / "dog" / "config.yaml").write_text("model: demo\n")
    kind = {"content-type": "application/x-www-form-urlencoded", "transfer-encoding": "chunked"}
    part = b"10000\r\n" + b"a" * 2**16 + b"\r\n"
    answer = server.send("POST", "/runs/dog/move", part * 20 + b"0\r\n\r\n", server.bearer | kind)
    assert answer.status == 413


def test_the_token_is_kept_for_the_next_server_and_from_other_users(tmp_path):
    first = read_token(tmp_path / "token")
    assert len(first) == 32
    assert read_token(tmp_path / "token") == first
    assert stat.S_IMODE(os.stat(tmp_path / "token").st_mode) == 0o600


def test_the_address_of_a_button_opened_as_a_page_leads_back_to_the_runs(server):
    answer = server.get("/runs/dog/start")
    assert answer.status == 404
    assert "There is nothing here." in answer.text
