"""How processes find process 0: one connection each, which then carries the bytes of JAX's client.

JAX's client does not connect by itself, because XLA then ends the process from C++, with a stack and exit code -6: when
somebody does not join in time, when process 0 is gone, and when the key-value store is used before all have joined, so
that nobody could say who is missing. A `missed_heartbeat_callback` in Python does not help, it dies of std::bad_cast
(all seen with jaxlib 0.10.2). The client of JAX that connects to this module sees no end of process 0; the run sees it
at once, and ends with one sentence. JAX's service listens on the loopback of process 0 alone, and the port of process 0
is closed once all have joined, so that nobody else can reach either while the run goes on.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from jaxbooth.console.messages import print_stderr
from jaxbooth.distributed.process_info import ProcessInfo
from jaxbooth.errors import UserError

RETRY = 0.2  # seconds between attempts to connect
CHUNK = 1 << 16  # bytes
LONGEST_LINE = 1 << 20  # bytes
VANISHED = 12  # seconds after which a machine that does not answer counts as gone
SERVICE_STARTS = 60  # seconds after which JAX's service listens, once all have joined
STOP = b"stop\n"  # sent instead of JAX's bytes by a process that was asked to stop before all had joined
LOOPBACK = "127.0.0.1"
PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")

READY = {"kind": "ready", "text": ""}

Message = dict[str, Any]  # "kind": hello, waiting, ready, stop, error or gone
Lost = Callable[[str], None]  # takes the name of a process whose connection ended


class Coordinator:
    """Lets every process in once, on process 0; process 0 has a `Connection`, too.

    Args:
        timeout: seconds to wait for all processes.
        notice: seconds between messages about who is missing.
        lost: called from another thread with the name of a process that is gone after all had joined.

    Raises:
        UserError: the port is taken.
    """

    def __init__(self, info: ProcessInfo, timeout: float, notice: float, lost: Lost):
        self._info, self._timeout, self._notice, self._lost = info, timeout, notice, lost
        self._hellos: dict[int, Message] = {}
        self._connections: dict[int, socket.socket] = {}
        self._changed = threading.Condition()
        self._outcome: Message | None = None
        local = info.address[0] in ("localhost", LOOPBACK, "::1")
        try:
            self._listener = socket.create_server((LOOPBACK if local else "", info.address[1]), backlog=1024)
        except OSError as error:
            raise UserError(
                f"--distributed.coordinator {info.coordinator}: process 0 cannot listen there ({error.strerror}); "
                "choose another port."
            ) from None
        with socket.create_server((LOOPBACK, 0)) as free:
            self._service = free.getsockname()
        start_thread(self._accept)
        start_thread(self._watch_the_clock)

    @property
    def service_address(self) -> str:
        """Where JAX's service is to listen."""
        return f"{LOOPBACK}:{self._service[1]}"

    def wait_for_others_to_leave(self, timeout: float) -> None:
        """Waits until process 0 alone is connected."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._connections) <= 1, timeout)

    def _watch_the_clock(self) -> None:
        """Says who is missing, and gives up in the end."""
        end = time.monotonic() + self._timeout
        with self._changed:
            while (left := end - time.monotonic()) > 0:
                if self._changed.wait_for(lambda: self._outcome, min(self._notice, left)):
                    return
                self._tell("waiting", f"waiting for all processes: {self._attendance()}")
            self._decide("error", f"not all processes started within {self._timeout:g} s: {self._attendance()}.")

    def _accept(self) -> None:
        """Takes connections until the listener is closed."""
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                start_thread(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        """Lets one process in, and passes on what its JAX client sends."""
        notice_vanishing(connection)
        hello = read_message(connection)
        if not self._let_in(hello, connection):
            connection.close()
            return
        service: socket.socket | None = None
        with suppress(OSError):
            while data := connection.recv(CHUNK):
                if service is None and data.startswith(STOP):
                    self._decide("stop")
                    data = data.removeprefix(STOP)
                if service is None and data:
                    service = connect(self._service, SERVICE_STARTS)
                    start_thread(copy_bytes, service, connection)
                if service is not None:
                    service.sendall(data)
        with self._changed:
            self._decide("gone", f"{hello['name']} is gone: it was killed, or its machine stopped.")
            del self._connections[hello["process_id"]]
            self._changed.notify_all()
            was_complete = self._outcome == READY
        if was_complete:
            self._lost(hello["name"])

    def _let_in(self, hello: Message, connection: socket.socket) -> bool:
        """Registers a process; the last one opens the way for all."""
        process_id = hello.get("process_id")
        if process_id not in range(self._info.num_processes) or not {"name", "must_match"} <= hello.keys():
            return False  # a stranger
        with self._changed:
            if process_id in self._hellos:
                names = f"{self._hellos[process_id]['name']} and {hello['name']}"
                send_message(connection, "error", f"there are two processes {process_id}: {names}.")
                return False
            self._hellos[process_id], self._connections[process_id] = hello, connection
            if self._outcome is not None:
                send_message(connection, **self._outcome)
            elif len(self._hellos) == self._info.num_processes:
                difference = self._difference()
                self._decide(**{"kind": "error", "text": difference} if difference else READY)
            return True

    def _difference(self) -> str:
        """Returns a sentence about what differs between the processes, empty if nothing does."""
        main = self._hellos[0]
        for _, hello in sorted(self._hellos.items()):
            for key, value in main["must_match"].items():
                other = hello["must_match"].get(key)
                if other != value:
                    return (
                        f"{hello['name']} has {key} {other}, and {main['name']} has {value}; "
                        "start the same command with the same versions everywhere."
                    )
        return ""

    def _attendance(self) -> str:
        """Says who is here, and who is not."""
        missing = [str(index) for index in range(self._info.num_processes) if index not in self._hellos]
        here = ", ".join(hello["name"] for _, hello in sorted(self._hellos.items()))
        return f"{here} joined; process {', '.join(missing)} of {self._info.num_processes} did not"

    def _decide(self, kind: str, text: str = "") -> None:
        """Ends the waiting of all processes; the first reason counts."""
        with self._changed:
            if self._outcome is not None:
                return
            self._outcome = {"kind": kind, "text": text}
            with suppress(OSError):  # a thread's `accept` ends with it
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._tell(kind, text)
            self._changed.notify_all()

    def _tell(self, kind: str, text: str) -> None:
        """Sends a message to all processes."""
        for connection in self._connections.values():
            send_message(connection, kind, text)


class Connection:
    """A process's connection to the `Coordinator`.

    Raises:
        UserError: process 0 cannot be reached in time.
    """

    def __init__(self, info: ProcessInfo, must_match: Mapping[str, str], timeout: float, notice: float, lost: Lost):
        self._lost, self._is_waiting = lost, True
        self._connection = reach(info, timeout, notice)
        notice_vanishing(self._connection)
        send_message(self._connection, "hello", process_id=info.process_id, name=info.name, must_match=dict(must_match))

    def wait(self) -> Message:
        """Waits for all processes; returns what came of it."""
        while (message := read_message(self._connection)).get("kind") == "waiting":
            print_stderr(message["text"])
        self._is_waiting = False
        return message or {"kind": "gone", "text": "process 0 is gone before all processes had joined."}

    def stop(self) -> None:
        """Sends all processes home, as long as not all have joined."""
        if self._is_waiting:
            with suppress(OSError):
                self._connection.sendall(STOP)

    def open_relay(self) -> str:
        """Listens on the loopback for JAX's client and connects it with process 0; returns where it listens."""
        listener = socket.create_server((LOOPBACK, 0))
        if any(name in os.environ for name in PROXIES):  # gRPC would ask one for the loopback, too
            os.environ["no_proxy"] = ",".join(filter(None, (LOOPBACK, os.environ.get("no_proxy"))))
        start_thread(self._relay, listener)
        return f"{LOOPBACK}:{listener.getsockname()[1]}"

    def _relay(self, listener: socket.socket) -> None:
        """Passes bytes on both ways until process 0 is gone; JAX's client sees no end."""
        self._jax_client, _ = listener.accept()  # kept: a socket that nothing refers to would close
        start_thread(copy_bytes, self._jax_client, self._connection)
        copy_bytes(self._connection, self._jax_client)
        self._lost("process 0")


def reach(info: ProcessInfo, timeout: float, notice: float) -> socket.socket:
    """Connects to process 0, which may start later.

    Raises:
        UserError: it did not start in time.
    """
    end = time.monotonic() + timeout
    while (left := end - time.monotonic()) > 0:
        with suppress(OSError):
            return connect(info.address, min(notice, left))
        print_stderr(f"{info.name} joined; process 0 at {info.coordinator} cannot be reached yet")
    raise UserError(
        f"{info.name} could not reach process 0 at {info.coordinator} within {timeout:g} s; "
        "start it, and let its port through."
    )


def connect(address: tuple[str, int], timeout: float) -> socket.socket:
    """Connects to a port that may be opened later.

    Raises:
        OSError: it was not opened in time.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection(address, timeout=5)
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(RETRY)
        else:
            connection.settimeout(None)
            return connection


def notice_vanishing(connection: socket.socket) -> None:
    """Ends a connection whose other machine has not answered for `VANISHED` seconds."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 3, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": VANISHED * 1000}
    for option, value in options.items():
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def copy_bytes(source: socket.socket, target: socket.socket) -> None:
    """Passes bytes on until the source ends."""
    with suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)


def send_message(connection: socket.socket, kind: str, text: str = "", **values: Any) -> None:
    """Sends one line of JSON; a connection that has ended is noticed by its reader."""
    with suppress(OSError):
        connection.sendall(json.dumps({"kind": kind, "text": text} | values).encode() + b"\n")


def read_message(connection: socket.socket) -> Message:
    """Returns the next message, without a byte of what follows it; empty when the connection ended."""
    with suppress(OSError, ValueError), connection.makefile("rb", buffering=0) as stream:
        message = json.loads(stream.readline(LONGEST_LINE))
        return message if isinstance(message, dict) else {}
    return {}


def start_thread(target: Callable[..., None], *arguments: Any) -> None:
    """Runs a function in a thread that does not keep the process alive."""
    threading.Thread(target=target, args=arguments, daemon=True).start()
