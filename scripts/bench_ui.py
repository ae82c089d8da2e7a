"""Measures `jaxbooth ui`: how long the list of many runs takes, and the memory that open pages cost.

    python scripts/bench_ui.py --runs 200 --clients 50

Prints milliseconds of each page when it is first asked for, when nothing has changed, and when a run trains; and the
server's resident memory before and while many pages listen.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from jaxbooth.config.load import dump_config, load_config
from jaxbooth.ui.roots import SERVER
from jaxbooth.ui.tokens import read_token

LINES = 2000  # of each log of metrics
REPEATS = 10
PAGES = ("/", "/new", "/compare", "/runs/run-000")
SETTLE_SECONDS = 5  # until a browser is open; the server reads the runs when it starts


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=int, default=60, help="for which the clients listen")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(arguments.runs):
            write_run(root / f"run-{number:03d}")
        with serve(root) as server:
            time.sleep(SETTLE_SECONDS)
            for path in PAGES:
                time_page(server, root, path)
            print(f"memory: {server.memory():.0f} MiB")
            listen(server, root, arguments.clients, arguments.seconds)


def write_run(folder: Path) -> None:
    """Writes the folder of a run with a long log."""
    (folder / "samples").mkdir(parents=True)
    config = load_config("demo", {"run_dir": str(folder), "train.steps": 2 * LINES})
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "metrics.jsonl").write_text("".join(line(step) for step in range(1, LINES + 1)))


def line(step: int) -> str:
    """Returns one line of a log."""
    return json.dumps({"step": step, "loss": 1 / step, "learning_rate": 1e-4, "images_per_second": 4.0}) + "\n"


def append(folder: Path) -> None:
    """Adds a line to a log."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line(LINES + time.time_ns() % LINES))


class Server:
    """A running server.

    Args:
        process: its process.
    """

    def __init__(self, process: subprocess.Popen[str], port: int, token: str):
        self._process, self._port = process, port
        self.headers = {"authorization": f"Bearer {token}"}

    def connect(self, path: str) -> http.client.HTTPResponse:
        """Sends a request and returns the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
        connection.request("GET", path, headers=self.headers)
        return connection.getresponse()

    def load(self, path: str) -> None:
        """Loads a page."""
        answer = self.connect(path)
        assert answer.status == 200, path
        assert answer.read()

    def memory(self) -> float:
        """Returns the resident memory, in MiB."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


@contextmanager
def serve(root: Path) -> Generator[Server]:
    """Starts a server in a process of its own."""
    command = [sys.executable, "-m", "jaxbooth", "ui", "--root", str(root), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    port = int(process.stdout.readline().split(":")[2].split("/")[0])
    try:
        yield Server(process, port, read_token(root / SERVER / "token"))
    finally:
        process.terminate()
        process.wait()


def time_page(server: Server, root: Path, path: str) -> None:
    """Prints how long a page takes."""

    def load_while_training() -> None:
        append(root / "run-000")
        server.load(path)

    first, again = milliseconds(lambda: server.load(path)), median(lambda: server.load(path))
    print(f"{path}: {first:.0f} ms, then {again:.0f} ms, while a run trains {median(load_while_training):.0f} ms")


def milliseconds(action: Callable[[], object]) -> float:
    """Returns how long an action takes."""
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3


def median(action: Callable[[], object]) -> float:
    """Returns how long an action takes, as the median of several."""
    return statistics.median(milliseconds(action) for _ in range(REPEATS))


def listen(server: Server, root: Path, clients: int, seconds: int) -> None:
    """Prints the memory while many pages listen and a run trains."""
    streams = [server.connect("/events") for _ in range(clients)]
    events = [0] * clients
    for number, stream in enumerate(streams):
        threading.Thread(target=count_events, args=(stream, events, number), daemon=True).start()
    for second in range(seconds):
        append(root / "run-000")
        time.sleep(1)
        if second % 10 == 9:
            print(f"{clients} pages for {second + 1} s: {server.memory():.0f} MiB, {sum(events)} events")


def count_events(stream: http.client.HTTPResponse, events: list[int], number: int) -> None:
    """Counts what a page hears."""
    for text in stream:
        events[number] += text.startswith(b"data:")


if __name__ == "__main__":
    main()
