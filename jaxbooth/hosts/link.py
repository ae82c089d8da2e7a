"""Every process's side: saying something to the others, and hearing when to stop."""

import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from jaxbooth.console.messages import print_stderr
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.hosts.gate import Gate
from jaxbooth.hosts.place import Place
from jaxbooth.hosts.wire import Message, Wire

RETRY = 0.2  # seconds between attempts to reach process 0
GRACE = 1.0  # seconds in which a process that fails itself may say why


class Alone:
    """The link of a process that is the only one.

    Attributes:
        gate: what the loop passes.
        stopped: called from another thread where a stop loses nothing; it ends the process.
    """

    def __init__(self, stopped: Callable[[], None]):
        self.gate, self.stopped = Gate(), stopped

    def await_all(self) -> None:
        """Waits until everyone has joined."""

    def exchange(self, value: Any) -> list[Any]:
        """Returns what all processes gave to the same call, by process; JSON values. Waits for all of them."""
        return [value]

    def ask_to_stop(self) -> None:
        """Makes all processes stop at the same step."""
        reached = self.gate.freeze()
        if reached is None:
            self.stopped()
        else:
            self.gate.close(reached)

    def fail(self, error: BaseException) -> None:
        """Tells the others why this process ends; they end too."""

    def abort(self, text: str) -> None:
        """Ends all processes with a sentence, from any thread and whatever the main one waits for; exit code 1."""
        print_stderr(f"error: {text}")
        exit_now(1)

    def close(self) -> None:
        """Says goodbye."""


class Link(Alone):
    """The link of one process among several.

    Args:
        facts: what must be equal everywhere, name -> JSON value.
        timeout: seconds to wait for process 0.
        notice: seconds between words on its absence.

    Raises:
        UserError: process 0 cannot be reached.
    """

    def __init__(
        self,
        place: Place,
        facts: Mapping[str, Any],
        timeout: float,
        notice: float,
        stopped: Callable[[], None],
    ):
        super().__init__(stopped)
        self._values: queue.Queue[list[Any]] = queue.Queue()
        self._round, self._ending = 0, False
        self._wire = Wire(reach(place, timeout, notice))
        self._wire.send(index=place.index, name=place.name, facts=dict(facts))
        self._messages = self._wire.messages()

    def await_all(self) -> None:
        """Waits until everyone has joined.

        Raises:
            UserError: someone did not join in time, or runs something else; one sentence says who.
        RunFailure: someone was killed.
        """
        for message in self._messages:
            match message["kind"]:
                case "ready":
                    threading.Thread(target=self._listen, daemon=True).start()
                    return
                case "error":
                    self._wire.close()
                    raise (RunFailure if message["is_gone"] else UserError)(f"{message['text']}.")
                case "waiting":
                    print_stderr(message["text"])
                case _:
                    self._handle(message)
        raise RunFailure("process 0 is gone before all processes had joined.")

    def exchange(self, value: Any) -> list[Any]:
        self._round += 1
        self._wire.send(kind="value", round=self._round, value=value)
        return self._values.get()

    def ask_to_stop(self) -> None:
        self._wire.send(kind="stop")

    def fail(self, error: BaseException) -> None:
        if self._ending:
            return
        if not isinstance(error, UserError | RunFailure):
            time.sleep(
                3 * GRACE
            )  # it may be a collective that misses a process: the link says which, and ends this one
        self._ending = True
        self._wire.send(kind="error", text=sentence_of(error))

    def abort(self, text: str) -> None:
        self.fail(RunFailure(text))
        print_stderr(f"error: {text}")
        time.sleep(2 * GRACE)  # the others hear it before JAX's service is gone
        exit_now(1)

    def close(self) -> None:
        self._ending = True
        self._wire.send(kind="bye")
        self._wire.close()

    def _listen(self) -> None:
        """Handles messages until process 0 is gone."""
        for message in self._messages:
            self._handle(message)
        # At once: JAX's own service, which was in that process too, aborts with a stack of C++ otherwise.
        self._end("process 0 is gone: it was killed, or its machine stopped", grace=0)

    def _handle(self, message: Message) -> None:
        """Does what one message asks for."""
        match message["kind"]:
            case "values":
                self._values.put(message["values"])
            case "freeze":
                self._wire.send(kind="reached", step=self.gate.freeze())
            case "last" if message["step"] is None:
                self._ending = True
                self.stopped()
            case "last":
                self.gate.close(message["step"])
            case "error":
                self._end(message["text"])

    def _end(self, text: str, grace: float = GRACE) -> None:
        """Ends this process, whatever its main thread waits for, unless it ends by itself."""
        time.sleep(grace)
        if not self._ending:
            print_stderr(f"error: {text}.")
            exit_now(1)


def exit_now(code: int) -> None:
    """Ends this process; at its exit JAX would wait for processes that may be gone, and abort."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def sentence_of(error: BaseException) -> str:
    """Returns an error's message, without the period at its end."""
    return (str(error) or type(error).__name__).removesuffix(".")


def reach(place: Place, timeout: float, notice: float) -> socket.socket:
    """Connects to process 0, which may start later.

    Raises:
        UserError: it did not start in time.
    """
    host, port = place.address
    began = last_notice = time.monotonic()
    while (now := time.monotonic()) - began < timeout:
        with suppress(OSError):
            connection = socket.create_connection((host, port), timeout=5)
            connection.settimeout(None)
            return connection
        if now - last_notice >= notice:
            last_notice = now
            print_stderr(f"{place.name} joined; process 0 at {place.coordinator} cannot be reached yet")
        time.sleep(RETRY)
    raise UserError(
        f"{place.name} could not reach process 0 at {place.coordinator} within {timeout:g} s; "
        "start it, and let its port through."
    )
