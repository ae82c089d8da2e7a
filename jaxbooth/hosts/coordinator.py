"""Process 0's side: who has joined, what all of them say, and telling everyone when one of them is gone."""

import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from jaxbooth.hosts.wire import Message, Wire


class Coordinator:
    """Accepts every process once, and passes messages on from threads of its own.

    Args:
        address: host and port to listen on.
        processes: how many will join, process 0 included.
        timeout: seconds to wait for all of them.
        notice: seconds after which, and again and again, those who wait hear who is missing.
    """

    def __init__(self, address: tuple[str, int], processes: int, timeout: float, notice: float):
        self._processes, self._timeout, self._notice = processes, timeout, notice
        self._lock = threading.RLock()
        self._wires: dict[int, Wire] = {}
        self._names: dict[int, str] = {}
        self._facts: dict[int, Mapping[str, Any]] = {}
        self._rounds: dict[int, dict[int, Any]] = {}
        self._reached: dict[int, int | None] = {}
        self._left: set[int] = set()
        self._asked_to_stop = self._failed = False
        self._complete = threading.Event()
        self._listener = listen(address)
        threading.Thread(target=self._accept, daemon=True).start()
        threading.Thread(target=self._watch_the_clock, daemon=True).start()

    def _accept(self) -> None:
        """Takes connections until everyone is here."""
        with suppress(OSError):  # the listener is closed when all have joined, and when time is up
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(Wire(connection),), daemon=True).start()

    def _serve(self, wire: Wire) -> None:
        """Handles all that one process sends."""
        messages = wire.messages()
        hello = next(messages, None)
        if hello is None or not self._welcome(wire, hello):
            wire.close()
            return
        index = hello["index"]
        for message in messages:
            with self._lock:
                getattr(self, f"_on_{message['kind']}")(index, message)
        with self._lock:
            if index not in self._left:
                self._fail(f"{self._names[index]} is gone: it was killed, or its machine stopped", index, is_gone=True)

    def _welcome(self, wire: Wire, hello: Message) -> bool:
        """Registers a process; the last one opens the way for all."""
        index = hello.get("index")
        with self._lock:
            if not isinstance(index, int) or not 0 <= index < self._processes:
                return False
            if index in self._wires:
                text = f"there are two processes {index}: {self._names[index]} and {hello['name']}"
                wire.send(kind="error", text=text, is_gone=False)
                return False
            self._wires[index], self._names[index] = wire, hello["name"]
            self._facts[index] = hello["facts"]
            if self._asked_to_stop:
                wire.send(kind="last", step=None)
                return True
            if len(self._wires) == self._processes:
                self._open()
        return True

    def _open(self) -> None:
        """Everyone is here: compares what they run, and lets them go."""
        self._complete.set()
        close_listener(self._listener)
        for index in range(1, self._processes):
            for key, value in self._facts[0].items():
                other = self._facts[index].get(key)
                if other != value:
                    self._fail(
                        f"{self._names[index]} has {key} {other}, and {self._names[0]} has {value}; "
                        "start the same command with the same versions everywhere"
                    )
                    return
        self._tell(kind="ready")

    def _watch_the_clock(self) -> None:
        """Says who is missing, and gives up in the end."""
        end = time.monotonic() + self._timeout
        while (left := end - time.monotonic()) > 0:
            if self._complete.wait(min(self._notice, left)):
                return
            with self._lock:
                if self._asked_to_stop:
                    return
                self._tell(kind="waiting", text=f"waiting for all processes: {self._attendance()}")
        with self._lock:
            if not (self._complete.is_set() or self._asked_to_stop):
                close_listener(self._listener)
                self._fail(f"not all processes started within {self._timeout:g} s: {self._attendance()}")

    def _attendance(self) -> str:
        """Who is here, and who is not."""
        missing = [str(index) for index in range(self._processes) if index not in self._wires]
        here = ", ".join(self._names[index] for index in sorted(self._names))
        return f"{here} joined; process {', '.join(missing)} of {self._processes} did not"

    def _on_value(self, index: int, message: Message) -> None:
        """Collects one round of an exchange."""
        values = self._rounds.setdefault(message["round"], {})
        values[index] = message["value"]
        if len(values) == self._processes:
            del self._rounds[message["round"]]
            self._tell(kind="values", values=[values[i] for i in range(self._processes)])

    def _on_stop(self, index: int, message: Message) -> None:
        """A process was asked to stop: asks everyone how far it is, or sends them home if not all have come."""
        if self._asked_to_stop:
            return
        self._asked_to_stop = True
        if self._complete.is_set():
            self._tell(kind="freeze")
        else:
            self._tell(kind="last", step=None)

    def _on_reached(self, index: int, message: Message) -> None:
        """The furthest process decides where all stop; if none is in the loop, they stop at once."""
        self._reached[index] = message["step"]
        if len(self._reached) == self._processes:
            steps = [step for step in self._reached.values() if step is not None]
            self._tell(kind="last", step=max(steps) if steps else None)

    def _on_error(self, index: int, message: Message) -> None:
        """A process failed."""
        self._fail(f"{self._names[index]}: {message['text']}", index)

    def _on_bye(self, index: int, message: Message) -> None:
        """A process is done."""
        self._left.add(index)

    def _fail(self, text: str, by: int | None = None, is_gone: bool = False) -> None:
        """Ends all other processes; the first reason counts."""
        if self._failed:
            return
        self._failed = True
        for index, wire in self._wires.items():
            if index != by:
                wire.send(kind="error", text=text, is_gone=is_gone)

    def _tell(self, **message: Any) -> None:
        """Sends to everyone."""
        for wire in self._wires.values():
            wire.send(**message)


def listen(address: tuple[str, int]) -> socket.socket:
    """Opens the coordinator's port; all interfaces, unless the address is this machine's loopback.

    Raises:
        OSError: the port is taken.
    """
    host, port = address
    local = host in ("localhost", "127.0.0.1", "::1")
    return socket.create_server(("127.0.0.1" if local else "", port), backlog=1024)


def close_listener(listener: socket.socket) -> None:
    """Closes a listening socket and ends a thread's `accept` on it; JAX's own service takes the port over."""
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
