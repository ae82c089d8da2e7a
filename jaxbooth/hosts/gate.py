"""How far a process may train once any process was asked to stop: all of them stop at the same step."""

import threading


class Gate:
    """Passed before every dispatch of the loop.

    A request to stop freezes every process where it is; the furthest step that any of them has begun to dispatch
    becomes everyone's last. Nobody waits for a device meanwhile, so that none can wait for one that has stopped.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reached: int | None = None  # None: outside of the loop, where stopping loses nothing
        self._frozen = False
        self._last: int | None = None

    def enter(self, step: int) -> None:
        """The loop begins, with `step` done."""
        with self._changed:
            self._reached = step

    def leave(self) -> None:
        """The loop is over, and what it did is saved."""
        with self._changed:
            self._reached = None

    def passes(self, step: int) -> bool:
        """Whether the loop may go on to `step`; waits while the last one is being agreed on."""
        with self._changed:
            self._changed.wait_for(lambda: not self._frozen or self._last is not None)
            if self._last is not None and step > self._last:
                return False
            self._reached = step
            return True

    @property
    def working(self) -> bool:
        """Whether the loop is running."""
        return self._reached is not None

    @property
    def closing(self) -> bool:
        """Whether there is a last step."""
        return self._last is not None

    def freeze(self) -> int | None:
        """Stops the loop at its next `passes`; returns the step that it has gone on to, None outside of the loop."""
        with self._changed:
            self._frozen = True
            return self._reached

    def close(self, last: int) -> None:
        """Lets the loop go on to `last`, and no further."""
        with self._changed:
            self._last = last
            self._changed.notify_all()
