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
from jaxbooth.hosts.link import Alone

Handler = Callable[[int, FrameType | None], None]


def requests() -> tuple[signal.Signals, ...]:
    """Returns the signals that ask a command to leave; `nohup` has turned the one of the terminal off."""
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


def leave(number: int, _frame: FrameType | None) -> None:
    """Ends a training command well, as long as it has not begun."""
    signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)
    print_plain("stopped; run the same command again.")
    sys.exit(0)


@contextmanager
def watch_signals(link: Alone) -> Generator[None]:
    """Lets signals stop all processes while the block runs.

    A thread of its own hears of them, because the main one may wait for a device or a compiler for minutes. Ctrl-C
    outside of the loop of a single process is Python's own affair.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    heard = dict.fromkeys((*requests(), signal.SIGINT), 0)

    def listen() -> None:
        while number := reader.recv(1):
            which = signal.Signals(number[0])
            if which not in heard or (which == signal.SIGINT and idle(link)):
                continue
            heard[which] += 1
            if heard[which] > 1 and which != signal.SIGHUP:  # another may come before the handler runs
                os._exit(128 + which)
            link.ask_to_stop()

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        if number == signal.SIGINT and idle(link) and not heard[signal.SIGINT]:
            signal.default_int_handler(number, frame)

    is_main_thread = threading.current_thread() is threading.main_thread()
    with handled(handle, *heard):
        former = signal.set_wakeup_fd(writer.fileno()) if is_main_thread else -1
        threading.Thread(target=listen, daemon=True).start()
        try:
            yield
        finally:
            if is_main_thread:
                signal.set_wakeup_fd(former)
            writer.close()  # ends the thread


def idle(link: Alone) -> bool:
    """Whether the process is the only one, and outside of its loop."""
    return type(link) is Alone and not link.gate.working
