"""The processes of a run start together, stop together and fail together, over JAX's coordination service."""

import atexit
import importlib.metadata
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import jax
from jax._src.distributed import global_state  # its client is the key-value store; there is no public way to it

from jaxbooth.console.messages import print_plain, print_stderr
from jaxbooth.distributed.process_info import ProcessInfo
from jaxbooth.distributed.rendezvous import Connection, Coordinator
from jaxbooth.distributed.signals import watch_signals
from jaxbooth.distributed.stop_agreement import StopAgreement
from jaxbooth.errors import RunFailure, UserError

NOTICE = 30.0  # seconds between messages about who is missing
POLL = 0.3  # seconds between two looks at the key-value store
GRACE = 1.0  # seconds in which a process that fails itself may say why
LEAVE = 5.0  # seconds that process 0, and JAX's service with it, waits for the others to leave
LONGEST_WAIT = 2**31 - 1  # milliseconds that a process may wait for a value of another
INITIALIZE = 60  # seconds for JAX's own start, at least; all processes are there
EVENTS, VALUES = "jaxbooth/events/", "jaxbooth/values/"  # in the key-value store
EXIT_CODES: dict[type[BaseException], int] = {UserError: 2, KeyboardInterrupt: 130}  # of `jaxbooth.cli`; else 1
PACKAGES = ("jaxbooth", "jax", "jaxlib")


class SingleProcess:
    """The only process of a run; the same methods as `ProcessGroup`.

    Attributes:
        stop_agreement: asked by the loop.
        stopped: called from another thread where a stop loses nothing; it ends the process.
    """

    def __init__(self, stopped: Callable[[], None]):
        self.stop_agreement, self.stopped = StopAgreement(), stopped

    def join(self) -> None:
        """Waits until all processes have joined."""

    def exchange(self, value: Any) -> list[Any]:
        """Returns what all processes gave to the same call, by process; JSON values. Waits for all of them."""
        return [value]

    def request_stop(self) -> None:
        """Makes all processes stop at the same step; may be called from any thread."""
        reached = self.stop_agreement.freeze()
        if reached is None:
            self.stopped()
        else:
            self.stop_agreement.set_last_step(reached)

    def may_interrupt(self) -> bool:
        """Whether Ctrl-C may raise KeyboardInterrupt: nobody waits for this process, and it does not train."""
        return not self.stop_agreement.is_training

    def fail(self, error: BaseException) -> None:
        """Tells the other processes why this one ends; they end, too."""

    def abort(self, text: str) -> None:
        """Ends all processes with a sentence and exit code 1, from any thread and whatever the main one waits for."""
        self.fail(RunFailure(text))
        print_stderr(f"error: {text}")
        exit_now(1)

    def close(self) -> None:
        """Waits until all processes are done, and leaves them."""


class ProcessGroup(SingleProcess):
    """One process among several.

    A thread looks at the key-value store for an error of any process, and for a request to stop.

    Args:
        must_match: name -> text, which must be equal on all processes.
        timeout: seconds to wait for all processes.
        in_step: all of them train the same steps; else each stops where it is, and saves, when any is asked to.

    Raises:
        UserError: the processes do not come together; the message says which is missing.
    """

    def __init__(
        self, info: ProcessInfo, must_match: Mapping[str, str], timeout: float, stopped: Callable[[], None],
        in_step: bool = True,
    ):  # fmt: skip
        super().__init__(stopped)
        if jax.distributed.is_initialized():
            raise UserError("jax.distributed is initialized already; leave that to jaxbooth.")
        self._info, self._timeout, self._in_step = info, timeout, in_step
        self._has_joined = self._stop_requested = False
        self._ending_thread: int | None = None  # the one that ends this process
        self._ending_lock = threading.Lock()
        self._rounds = 0
        self._closed = threading.Event()
        self._coordinator = Coordinator(info, timeout, NOTICE, self._lost) if info.process_id == 0 else None
        self._connection = Connection(info, must_match, timeout, NOTICE, self._lost)

    def join(self) -> None:
        """Waits for all processes and starts JAX's runtime among them.

        Raises:
            UserError: a process did not join in time, or runs something else.
            RunFailure: a process was killed.
        """
        outcome = self._connection.wait()
        match outcome["kind"]:
            case "stop":
                self._leave_stopped()
                return
            case "error":
                raise UserError(outcome["text"])
            case "gone":
                raise RunFailure(outcome["text"])
        # JAX's own preemption service knows no steps that are dispatched together, and hears only SIGTERM.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            self._connection.open_relay(),
            self._info.num_processes,
            self._info.process_id,
            self._info.local_device_ids,
            initialization_timeout=max(int(self._timeout), INITIALIZE),
            coordinator_bind_address=self._coordinator.service_address if self._coordinator else None,
        )
        self._has_joined = True
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def exchange(self, value: Any) -> list[Any]:
        self._rounds += 1
        keys = [f"{VALUES}{self._rounds}/{process_id}" for process_id in range(self._info.num_processes)]
        self._client.key_value_set(keys[self._info.process_id], json.dumps(value))
        return [json.loads(self._client.blocking_key_value_get(key, LONGEST_WAIT)) for key in keys]

    def request_stop(self) -> None:
        self._stop_requested = True  # the watcher passes it on
        self._connection.stop()

    def may_interrupt(self) -> bool:
        return False

    def fail(self, error: BaseException) -> None:
        if self._ending_thread == threading.get_ident():
            return
        if not isinstance(error, UserError | RunFailure):
            time.sleep(3 * GRACE)  # it may be a collective that misses a process; the watcher ends this one then
        if not self._may_end():
            threading.Event().wait()  # another thread ends this process, and has said why
        if self._has_joined:
            self._write_event("error", f"{self._info.name}: {(str(error) or type(error).__name__).removesuffix('.')}.")
        self._wait_for_others_to_leave()

    def close(self) -> None:
        self.exchange("done")
        self._closed.set()
        self._watcher.join()
        jax.distributed.shutdown()

    def _watch(self) -> None:
        """Handles what any process has written into the key-value store, until the run is over.

        A stop comes before an error: of those that stop, some are gone earlier than others.
        """
        is_frozen = False
        while not self._closed.wait(POLL):
            with suppress(jax.errors.JaxRuntimeError):  # process 0 is gone; the relay tells
                if self._stop_requested:
                    self._write_event("stop", "")
                events = {key.removeprefix(EVENTS): value for key, value in self._client.key_value_dir_get(EVENTS)}
                if "stop" in events and not is_frozen:
                    is_frozen, reached = True, self.stop_agreement.freeze()
                    if self._in_step:
                        self._write_event(f"reached/{self._info.process_id}", json.dumps(reached))
                    else:
                        self.stop_agreement.set_last_step(reached or 0)
                steps = [json.loads(value) for key, value in events.items() if key.startswith("reached/")]
                if len(steps) == self._info.num_processes and not self.stop_agreement.is_stopping:
                    self._agree(steps)
                if "error" in events:
                    time.sleep(GRACE)
                    self._end(events["error"])

    def _agree(self, reached: list[int | None]) -> None:
        """Stops where the furthest process is; at once if none trains."""
        steps = [step for step in reached if step is not None]
        if steps:
            self.stop_agreement.set_last_step(max(steps))
        else:
            self._leave_stopped()

    def _leave_stopped(self) -> None:
        """Ends this process, after a request to stop that loses nothing."""
        if self._may_end():
            self._wait_for_others_to_leave()
            self.stopped()

    def _lost(self, name: str) -> None:
        """Handles the end of a connection."""
        if self._closed.is_set():
            return
        sentence = f"{name} is gone: it was killed, or its machine stopped."
        if self._has_joined and self._coordinator:
            self._write_event("error", sentence)  # for the watchers of all
        else:
            self._end(sentence)

    def _write_event(self, name: str, value: str) -> None:
        """Writes into the key-value store what the watchers of all processes look for, once."""
        with suppress(jax.errors.JaxRuntimeError):  # it is there already, or process 0 is gone
            self._client.key_value_set(EVENTS + name, value)

    @property
    def _client(self) -> Any:
        """The key-value store of JAX's coordination service."""
        return global_state.client

    def _end(self, text: str) -> None:
        """Ends this process, whatever its main thread waits for, unless it ends by itself."""
        if self._may_end():
            print_stderr(f"error: {text}")
            self._wait_for_others_to_leave()
            exit_now(1)

    def _may_end(self) -> bool:
        """Whether this thread is the first that wants to end the process."""
        with self._ending_lock:
            is_first = self._ending_thread is None
            if is_first:
                self._ending_thread = threading.get_ident()
            return is_first

    def _wait_for_others_to_leave(self) -> None:
        """Keeps JAX's service alive, and the connections, until the others know."""
        if self._coordinator:
            self._coordinator.wait_for_others_to_leave(LEAVE)


@contextmanager
def process_group(
    info: ProcessInfo | None, must_match: Mapping[str, str], timeout: float, how_to_continue: str, in_step: bool = True
) -> Generator[SingleProcess]:
    """Runs the block as one of the run's processes, and yields what joins them.

    If the block fails on one of them, all end, and say on which. A signal to stop outside of the loop ends all of them
    with exit code 0.

    Args:
        info: of this process; None: it is the only one.
        must_match: name -> text of the run, which must be equal on all processes.
        timeout: seconds to wait for all processes.
        how_to_continue: the sentence that is printed after a stop.
        in_step: see `ProcessGroup`.

    Raises:
        UserError: the processes do not come together.
    """
    sentence = how_to_continue if info is None or info.process_id == 0 else None
    versions = {f"{package} version": importlib.metadata.version(package) for package in PACKAGES}
    if info is None:
        group = SingleProcess(lambda: exit_stopped(sentence))
    else:
        group = ProcessGroup(info, versions | dict(must_match), timeout, lambda: exit_stopped(sentence), in_step)
    try:
        with watch_signals(group.request_stop, group.may_interrupt):
            group.join()
            yield group
    except BaseException as error:
        group.fail(error)
        if info:
            atexit.register(exit_now, EXIT_CODES.get(type(error), 1))
        raise
    group.close()


def exit_stopped(sentence: str | None) -> None:
    """Ends this process at once, from any thread; everything on disk is whole."""
    if sentence:
        print_plain(sentence)
    exit_now(0)


def exit_now(code: int) -> None:
    """Ends this process; at its exit JAX would wait for processes that may be gone, and abort."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
