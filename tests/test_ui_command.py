"""`jaxbooth ui` as a command: what it prints, what it refuses, and what its end leaves running."""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from jaxbooth.cli.ui import ui_command
from jaxbooth.errors import UserError
from jaxbooth.ui.job import TRAIN, JobFiles
from jaxbooth.ui.photos import UPLOADS
from jaxbooth.ui.roots import Roots
from jaxbooth.ui.run_list import RunList
from jaxbooth.ui.server import describe_address, listen
from tests.commands import jaxbooth, start
from tests.test_ui_queue import sleeper, stop_all, wait
from tests.ui_server import UiServer


def serve(root: Path) -> tuple[subprocess.Popen[str], UiServer]:
    """Starts the command and waits for its address."""
    process = start("ui", "--root", root, "--port", 0)
    assert process.stdout
    address = process.stdout.readline()
    match = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)\n", address)
    assert match, address
    return process, UiServer(int(match[1]), match[2], Roots.open(root))


def end(process: subprocess.Popen[str]) -> None:
    """Ends a command."""
    process.kill()
    process.wait()


def test_the_address_and_the_way_through_ssh_are_printed():
    lines = describe_address("127.0.0.1", 7861, "secret").splitlines()
    assert lines[0] == "http://127.0.0.1:7861/?token=secret"
    assert re.fullmatch(r"  ssh -N -L 7861:localhost:7861 \S+@\S+", lines[2])


def test_a_public_address_is_warned_about():
    assert "Whoever has this address can start programs here" in describe_address("0.0.0.0", 7860, "secret")


def test_a_port_in_use_is_named_and_the_next_one_offered():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} is in use; try --port \d+\.") as refused:
            listen("127.0.0.1", port)
        offered = int(re.findall(r"\d+", str(refused.value))[-1])
        listen("127.0.0.1", offered).close()


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1: .*; name an address of this machine"):
        listen("192.0.2.1", 7860)


def test_a_root_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--root .*/file/runs cannot be written \(Not a directory\)"):
        Roots.open(tmp_path / "file" / "runs")


def test_a_folder_that_is_missing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--folders .*/photos is not a folder; name one that exists\."):
        Roots.open(tmp_path, (tmp_path / "photos",))


@pytest.mark.parametrize("flag", ["--root", "--folders"])
def test_a_folder_in_an_object_store_is_refused(flag, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{flag} gs://bucket/runs is in an object store, .*; name a local folder"):
        ui_command([flag, "gs://bucket/runs", "--port", "0"])
    assert not any(tmp_path.iterdir())


def test_a_second_server_of_a_root_is_refused(tmp_path):
    process, _ = serve(tmp_path)
    try:
        second = jaxbooth("ui", "--root", tmp_path, "--port", 0)
        assert second.returncode == 2
        assert "another `jaxbooth ui` works in" in second.stderr
    finally:
        end(process)


def test_a_job_goes_on_when_the_server_is_killed_and_the_next_server_stops_it(tmp_path):
    process, server = serve(tmp_path)
    files = sleeper(tmp_path, "dog")
    wait(lambda: files.log_lines() and "token=" in "".join(files.log_lines()))  # a signal before that would kill it
    end(process)
    time.sleep(1)
    assert JobFiles.of(tmp_path / "dog", TRAIN).state() == "running"
    process, again = serve(tmp_path)
    try:
        assert again.token == server.token  # open pages go on
        assert ">training<" in again.get("/runs").text
        assert again.post("/runs/dog/stop").status == 200
        wait(lambda: files.state() == "done")  # it ended well; that the run is not complete says that it was stopped
        assert RunList(tmp_path).get(tmp_path / "dog").state == "stopped"
    finally:
        stop_all(files)
        end(process)


def test_what_came_of_an_upload_is_gone_when_the_server_was_killed(tmp_path):
    process, server = serve(tmp_path)
    assert server.post("/new/photos", {"name": "dog"}).status < 400
    begun = server.roots.server / UPLOADS
    with socket.create_connection(("127.0.0.1", server.port)) as phone:
        head = ("POST /new/photos/dog/upload?name=a.png HTTP/1.1", "Host: localhost", "Content-Length: 100000")
        phone.sendall("\r\n".join((*head, f"Authorization: Bearer {server.token}", "", "")).encode() + bytes(50_000))
        wait(lambda: begun.is_dir() and any(path.stat().st_size for path in begun.iterdir()))
        end(process)
    assert any(begun.iterdir())
    process, _ = serve(tmp_path)
    try:
        assert not any(begun.iterdir())
        assert not any((tmp_path / "photos" / "dog").iterdir())
    finally:
        end(process)


def test_ctrl_c_ends_the_server_although_pages_listen(tmp_path):
    process, server = serve(tmp_path)
    with socket.create_connection(("127.0.0.1", server.port)) as page:
        request = ("GET /events HTTP/1.1", "Host: localhost", f"Authorization: Bearer {server.token}", "", "")
        page.sendall("\r\n".join(request).encode())
        assert b"200 OK" in page.recv(1000)
        os.kill(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert output.splitlines()[-1] == "The page is closed; runs that train go on."
