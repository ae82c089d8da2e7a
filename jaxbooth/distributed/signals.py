"""SIGTERM, Ctrl-C and the end of the terminal (SIGHUP) ask all processes to save and leave.

A second SIGTERM or Ctrl-C ends this process at once. A second SIGHUP does not: the kernel and the shell send one each.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

from jaxbooth.console.messages import print_plain

Handler = Callable[[int, FrameType | None], None]


def stop_signals() -> tuple[signal.Signals, ...]:
    """Returns the signals that ask a command to stop; `nohup` has turned off the one of the terminal."""
    hears_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGHUP) if hears_terminal else (signal.SIGTERM,)


@contextmanager
def handled(handler: Handler, *numbers: signal.Signals) -> Generator[None]:
    """Handles signals while the block runs, and restores the former handlers after it.

    Outside of the main thread Python allows no handlers, so there nothing is caught.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, before in former.items():
            if signal.getsignal(number) != signal.SIG_IGN:  # a handler has turned it off for good
                signal.signal(number, before)


def exit_before_start(number: int, _frame: FrameType | None) -> None:
    """Ends a training command with exit code 0, as long as it has not begun."""
    signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
    print_plain("stopped; run the same command again.")
    sys.exit(0)


@contextmanager
def watch_signals(request_stop: Callable[[], None], may_interrupt: Callable[[], bool]) -> Generator[None]:
    """Calls `request_stop`, from another thread, when a signal arrives while the block runs.

    The main thread may wait for a device or a compiler for minutes, so Python's own handlers would come too late.

    Args:
        may_interrupt: whether Ctrl-C raises KeyboardInterrupt as usual.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    counts = dict.fromkeys((*stop_signals(), signal.SIGINT), 0)

    def listen() -> None:
        while received := reader.recv(1):
            number = signal.Signals(received[0])
            if number not in counts or (number == signal.SIGINT and may_interrupt()):
                continue
            counts[number] += 1
            if counts[number] > 1 and number != signal.SIGHUP:  # another may come before the handler runs
                os._exit(128 + number)
            request_stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        if number == signal.SIGINT and may_interrupt() and not counts[signal.SIGINT]:
            signal.default_int_handler(number, frame)

    is_main_thread = threading.current_thread() is threading.main_thread()
    with handled(handle, *counts):
        former = signal.set_wakeup_fd(writer.fileno()) if is_main_thread else -1
        threading.Thread(target=listen, daemon=True).start()
        try:
            yield
        finally:
            if is_main_thread:
                signal.set_wakeup_fd(former)
            writer.close()  # ends the thread
