"""Many and impatient clients of `jaxbooth ui`: what they leave behind in the server."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.made_up_runs import made_up_run
from tests.ui_server import UiServer, idle_ui_server

SECONDS = 120


@pytest.fixture
def server(tmp_path) -> UiServer:
    """A server of one run, whose queue starts nothing."""
    made_up_run(tmp_path / "cat")
    with idle_ui_server(tmp_path) as running:
        yield running


def connect(server: UiServer, path: str) -> socket.socket:
    """Asks for a path, and reads nothing of the answer."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    bearer = f"Authorization: Bearer {server.token}"
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{bearer}\r\n\r\n".encode())
    return connection


def open_files(part: str) -> list[str]:
    """Returns the open files of this process whose paths have a part."""
    paths = []
    for name in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return [path for path in paths if part in path]


def resident_mib() -> float:
    """Returns the memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_downloads_that_break_off_leave_no_file_open(server):
    folder = server.roots.runs / "cat" / "exports" / "lora-40" / "cat"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").touch()
        os.truncate(folder / f"{name}.safetensors", 2**28)
    for _ in range(5):
        with connect(server, "/runs/cat/exports/lora/40") as connection:
            connection.recv(2**16)
    deadline = time.monotonic() + SECONDS
    while open_files(".safetensors"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_five_tabs_get_the_report_that_is_made_once(server):
    statuses: list[int] = []
    tabs = [
        threading.Thread(target=lambda: statuses.append(server.get("/compare/report?run=cat").status)) for _ in range(5)
    ]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join()
    assert statuses == [200] * 5
    assert len(list((server.roots.server / "reports").iterdir())) == 1


@pytest.mark.slow
def test_fifty_listeners_that_never_read_take_no_memory(server):
    listeners = [connect(server, path) for path in ("/events", "/events?run=cat") * 25]
    try:
        sizes = []
        for step in range(120):
            with (server.roots.runs / "cat" / "metrics.jsonl").open("a") as log:
                log.write(f'{{"step": {41 + step}, "loss": 0.1}}\n')
            time.sleep(0.5)
            sizes.append(resident_mib())
        assert max(sizes) - sizes[5] < 8
        assert server.get("/runs").status == 200
    finally:
        for listener in listeners:
            listener.close()
