"""How far a process may train once any process was asked to stop: all of them stop at the same step."""

import threading


class StopAgreement:
    """Asked by the loop before every dispatch.

    A request to stop freezes every process where it is. The furthest step that any of them has begun to dispatch
    becomes the last step of all. Nobody waits for a device meanwhile, so none waits for a process that has stopped.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._reached: int | None = None  # None: not training, so that a stop loses nothing
        self._is_frozen = False
        self._last_step: int | None = None

    def begin(self, step: int) -> None:
        """Training begins, with `step` done."""
        with self._changed:
            self._reached = step

    def end(self) -> None:
        """Training is over, and its result is saved."""
        with self._changed:
            self._reached = None

    def may_run_to(self, step: int) -> bool:
        """Whether the loop may go on to `step`; waits while the processes agree on the last step."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_frozen or self._last_step is not None)
            if self._last_step is not None and step > self._last_step:
                return False
            self._reached = step
            return True

    @property
    def is_training(self) -> bool:
        """Whether the loop runs."""
        return self._reached is not None

    @property
    def is_stopping(self) -> bool:
        """Whether the processes have agreed on a last step."""
        return self._last_step is not None

    def freeze(self) -> int | None:
        """Makes the loop wait; returns the step that it has gone on to, None where it does not run."""
        with self._changed:
            self._is_frozen = True
            return self._reached

    def set_last_step(self, step: int) -> None:
        """Lets the loop go on to `step`, and no further."""
        with self._changed:
            self._last_step = step
            self._changed.notify_all()
