"""SIGTERM and Ctrl-C ask the loop to save and leave; a second one ends the process at once."""

import signal
import threading
from collections.abc import Generator
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
def watch_signals() -> Generator[Interrupt]:
    """Catches SIGNALS while the block runs, and restores the former handlers after it.

    Outside of the main thread Python allows no handlers, so there nothing is caught.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    former = {number: signal.signal(number, interrupt.request) for number in SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
