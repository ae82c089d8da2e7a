"""What SIGTERM and Ctrl-C do: in the loop, ask it to save and leave; elsewhere nothing is at stake, and SIGTERM leaves.

A second signal ends the process at once.
"""

import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Whether the process was asked to stop."""

    def __init__(self) -> None:
        self.requested = False

    def request(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        self.requested = True
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Generator[None]:
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
            signal.signal(number, before)


@contextmanager
def watch_signals() -> Generator[Interrupt]:
    """Catches SIGNALS while the block runs."""
    interrupt = Interrupt()
    with handled(interrupt.request, *SIGNALS):
        yield interrupt


def leave(number: int, _frame: FrameType | None) -> None:
    """Ends a training command well: what it has made is on disk, and what it was making it makes again."""
    signal.signal(number, signal.SIG_DFL)
    print("stopped; run the same command again to continue.", flush=True)
    sys.exit(0)
