"""The loop over all subjects: slots are filled from a queue, trained together, saved together and emptied."""

import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxbooth.config.manifest import SubjectRun
from jaxbooth.console.messages import warn
from jaxbooth.console.output import output
from jaxbooth.distributed.group import SingleProcess
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.many.device_slots import DeviceSlots
from jaxbooth.many.program import Program
from jaxbooth.many.root import is_done
from jaxbooth.many.saves import SavedStates, SubjectState, run_identity
from jaxbooth.many.slot_run import Diverged, SlotRun, open_slot_run
from jaxbooth.runs.status import State, StatusLog, SubjectStatus, count_states
from jaxbooth.runs.status_table import RunningSubject, StatusDisplay
from jaxbooth.storage.disk import is_full
from jaxbooth.storage.lock import InUseError
from jaxbooth.training.slot_rows import stack_rows
from jaxbooth.training.state import TrainState

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


class Dispatched(NamedTuple):
    """Steps that the devices were asked for.

    Attributes:
        runs: in each slot, then.
        starts: steps that each had done before.
        counts: steps of each.
        metrics: (steps, slots).
        began: when they were asked for.
    """

    runs: list[SlotRun | None]
    starts: list[int]
    counts: list[int]
    metrics: Any
    began: float


@dataclass
class ManyLoop:
    """Trains all subjects of a queue.

    Attributes:
        names: all subjects, of which the display speaks.
        statuses: the last of each.
    """

    program: Program
    slots: DeviceSlots
    queue: Iterator[SubjectRun]
    saved: SavedStates
    log: StatusLog
    names: Sequence[str]
    statuses: dict[str, SubjectStatus]
    processes: SingleProcess
    display: StatusDisplay
    runs: list[SlotRun | None] = field(default_factory=list)
    steps_since_save: int = 0
    seconds_per_step: float | None = None

    def run(self) -> None:
        """Trains until the queue is empty, or a signal asks to stop.

        Raises:
            RunFailure: the devices' memory or the disk is full. What was saved is intact.
        """
        self.runs = [None] * self.program.spec.slots
        stop, steps = self.processes.stop_agreement, 0
        try:
            stop.begin(0)
            pending, ended = None, 0.0
            while self.fill():
                count = max(self.limits())
                if not count or not stop.may_run_to(steps + count):  # none: all wait for what a stop has put off
                    break
                dispatched = self.dispatch()  # before the steps before it are logged: the devices do not wait for that
                steps += count
                if pending:
                    ended = self.log_dispatch(pending, ended)
                pending = dispatched
                if self.is_save_due or self.due:
                    ended, pending = self.log_dispatch(pending, ended), None
                for slot, run in self.due:
                    if not stop.is_stopping:  # what is due then is done when the command is run again
                        self.advance(slot, run)
                if self.is_save_due:
                    self.save()
            if pending:
                self.log_dispatch(pending, ended)
            self.save()
            stop.end()
        finally:
            for run in filter(None, self.runs):
                with suppress(Exception):  # the error that led here counts
                    run.close()

    def fill(self) -> bool:
        """Puts subjects of the queue into empty slots, unless a signal asks to stop; returns whether any is taken."""
        for slot in range(len(self.runs)):
            while self.runs[slot] is None and not self.processes.stop_agreement.is_stopping:
                subject = next(self.queue, None)
                if subject is None:
                    break
                self.enter(slot, subject)
        self.show()
        return any(self.runs)

    def enter(self, slot: int, subject: SubjectRun) -> None:
        """Prepares a subject and puts it into a slot; one that cannot be trained is marked and leaves it empty."""
        name, config, steps, run = subject.name, subject.config, subject.config.train.steps, None
        try:
            if is_done(config):  # by another process, meanwhile
                self.saved.forget(name)
                self.set_status(name, "done", step=steps, steps=steps)
                return
            claimed = functools.partial(self.set_status, name, "preparing", steps=steps)
            with output.muted():
                run = open_slot_run(self.program, name, config, self.saved.find(name), claimed)
                run.begin()
            assert run.state is not None
            if run.is_done:  # a process ended between its last step and its export
                self.complete(run, slot, run.state)
            else:
                self.slots.enter(slot, run.state, (run.data.text, run.data.frozen_text), run.key)
                run.state, self.runs[slot] = None, run
                self.set_status(name, "running", step=run.step, steps=run.steps, slot=slot)
        except InUseError:
            self.saved.forget(name)  # the process that trains it has a state that is further
        except Exception as error:
            self.fail(name, error, run)

    @property
    def due(self) -> list[tuple[int, SlotRun]]:
        """The slots whose subjects are to be validated, or are done."""
        return [(slot, run) for slot, run in enumerate(self.runs) if run and run.validation.is_due(run.step)]

    @property
    def is_save_due(self) -> bool:
        """Whether the states are to be saved."""
        return self.steps_since_save >= self.program.config.train.checkpoint_every

    def limits(self) -> list[int]:
        """Returns how many steps each slot does in the next dispatch."""
        most = self.program.config.train.steps_per_dispatch
        return [min(most, run.next_stop() - run.step) if run else 0 for run in self.runs]

    def dispatch(self) -> Dispatched:
        """Begins some steps of every slot, and returns without waiting for them."""
        config, counts = self.program.config, self.limits()
        feeds = [run.rows if run else None for run in self.runs]
        starts = [run.step if run else 0 for run in self.runs]
        rows = self.slots.place_rows(stack_rows(feeds, starts, counts, config.train.steps_per_dispatch))
        text, keys = self.slots.place_text()
        arguments = (self.program.step_frozen, text, rows, keys, np.int32(max(counts)))
        compiled = self.program.compiled_for(self.slots.state, *arguments)
        began = time.perf_counter()
        self.slots.state, metrics = compiled(self.slots.state, *arguments)
        for run, count in zip(self.runs, counts, strict=True):
            if run:
                run.step += count
        self.steps_since_save += max(counts)
        return Dispatched(list(self.runs), starts, counts, metrics, began)

    def log_dispatch(self, dispatched: Dispatched, after: float) -> float:
        """Waits for steps and logs them; a subject whose loss is not finite leaves its slot. Returns when they ended.

        Args:
            after: when the steps before them ended.
        """
        columns = jax.device_get(dispatched.metrics)
        now = time.perf_counter()
        seconds = now - max(after, dispatched.began)
        self.seconds_per_step = seconds / max(dispatched.counts)
        for slot, (run, start, count) in enumerate(zip(*dispatched[:3], strict=True)):
            if not run or not count or self.runs[slot] is not run:
                continue
            try:
                run.log({name: column[:count, slot] for name, column in columns.items()}, start, seconds)
            except RunFailure as error:
                self.runs[slot] = None
                self.fail(run.name, error, run)
        self.show()
        return now

    def advance(self, slot: int, run: SlotRun) -> None:
        """Validates a subject whose steps are logged, if that is due, and finishes one that has all of them."""
        try:
            state = self.slots.extract(slot)
            with output.muted():
                run.validate(state)
            if run.is_done:
                self.complete(run, slot, state)
        except Exception as error:
            self.runs[slot] = None
            self.fail(run.name, error, run)

    def complete(self, run: SlotRun, slot: int, state: TrainState) -> None:
        """Writes the results of a subject and empties its slot."""
        with output.muted():
            run.finish(state)
        run.close()
        self.runs[slot] = None
        self.saved.forget(run.name)
        self.set_status(run.name, "done", step=run.step, steps=run.steps)

    def fail(self, name: str, error: Exception, run: SlotRun | None) -> None:
        """Marks a subject as failed; what would fail for the others, too, is raised.

        What was saved of it stays for the next attempt, unless that would fail as this one did.
        """
        if run:
            with suppress(Exception):
                run.close()
        if OUT_OF_MEMORY in str(error) or is_full(error):
            raise error
        known = isinstance(error, UserError | RunFailure)
        sentence = str(error) if known else f"{type(error).__name__}: {error}"
        step, steps = (run.step, run.steps) if run else (None, None)
        if isinstance(error, Diverged):
            self.saved.forget(name)
        self.set_status(name, "failed", step=step, steps=steps, error=sentence)
        warn(f"{name}: {sentence}", on_any_process=True)

    def save(self) -> None:
        """Writes the states of all slots into one file, once their logs are on disk; without any it is removed."""
        running = {slot: run for slot, run in enumerate(self.runs) if run}
        for run in running.values():
            run.writer.flush()
        self.steps_since_save = 0
        whole = jax.device_get(self.slots.state) if running else None
        self.saved.write(
            {
                run.name: SubjectState(
                    run_identity(run.config), jax.tree.map(lambda leaf, slot=slot: leaf[slot].copy(), whole)
                )
                for slot, run in running.items()
            }
        )

    def set_status(self, name: str, state: State, **details: Any) -> None:
        """Logs a change of a subject; see `StatusLog.add`."""
        self.statuses[name] = self.log.add(name, state, **details)

    def show(self) -> None:
        """Brings the display up to date."""
        running = [
            RunningSubject(
                run.name, slot, run.step, run.steps, run.loss,
                self.seconds_per_step and (run.steps - run.step) * self.seconds_per_step,
            )
            for slot, run in enumerate(self.runs) if run
        ]  # fmt: skip
        self.display.update(running, count_states(self.statuses, self.names))
