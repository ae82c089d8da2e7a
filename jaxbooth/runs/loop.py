"""The loop: dispatch K steps, log the ones before, and stop where a checkpoint or a sample grid is due."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxbooth.backend import peak_memory
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import info
from jaxbooth.console.progress import ProgressBar, progress
from jaxbooth.distributed.stop_agreement import StopAgreement
from jaxbooth.errors import RunFailure
from jaxbooth.params import Params
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.metric_writer import MetricWriter
from jaxbooth.runs.request_sampler import RequestSampler
from jaxbooth.runs.training_data import TrainingData
from jaxbooth.runs.validation import Validation
from jaxbooth.training.batch import BatchSource
from jaxbooth.training.state import TrainState
from jaxbooth.training.step import Dispatch


@dataclass
class TrainingLoop:
    """One run's loop.

    Attributes:
        dispatches: compiled, one for each cache of the data; see `make_dispatch`.
        frozen: component -> parameters that the step reads and does not change.
        validation: what is drawn and measured of a state.
        stop_agreement: of all processes, once one was asked to stop.
        requests: answers those for images of the model as it is; None: there is nobody to ask.
    """

    config: Config
    dispatches: Sequence[Dispatch]
    data: TrainingData
    frozen: dict[str, Params]
    checkpoints: Checkpoints
    writer: MetricWriter
    validation: Validation
    stop_agreement: StopAgreement
    requests: RequestSampler | None = None
    announced: bool = False

    def run(self, state: TrainState, step: int) -> tuple[TrainState, int]:
        """Trains from `step` to the last one, or to where a signal or the metrics say to end; every end is saved.

        Raises:
            RunFailure: a loss or gradient is not finite. Checkpoints on disk are all from before that.
        """
        total = self.config.train.steps
        self.stop_agreement.begin(step)
        with progress("train", total, done=step) as bar:
            while step < total:
                state, step, stopped = self.advance(state, step, self.next_stop(step), bar)
                if stopped:
                    break
                losses = self.validation.held_out_losses(state) if self.validation.is_due(step) else {}
                self.writer.extend_step(step, losses)
                self.writer.flush()  # before the checkpoint, so that no resumed run lacks lines
                if step % self.config.train.checkpoint_every == 0 or step == total:
                    self.checkpoints.save(state, step, self.config)
                if self.validation.is_due(step) and not self.stop_agreement.is_stopping:
                    self.validation(state, step, losses)
                self.writer.flush()
                if self.requests:
                    self.requests.answer(state, step)
                if self.validation.should_stop:
                    break
        self.checkpoints.save(state, step, self.config)  # where a signal stopped it; elsewhere it is saved already
        with progress("save", total=None, transient=True):
            self.checkpoints.wait()
        self.stop_agreement.end()
        return state, step

    def next_stop(self, step: int) -> int:
        """Returns the next step at which the host has something to do."""
        every = [self.config.train.checkpoint_every, self.config.validation.every]
        every += [self.config.evaluation.every] if self.config.evaluation.every else []
        return min(self.config.train.steps, *(step - step % n + n for n in every))

    def advance(self, state: TrainState, step: int, stop: int, bar: ProgressBar) -> tuple[TrainState, int, bool]:
        """Dispatches up to `stop`, or to where the processes agree to stop; the third result says whether it did.

        A request for images ends it earlier, after one dispatch at least, so that nothing that was due is due again.
        The device always has the next dispatch queued while the host logs the last one.
        """
        pending: tuple[int, int, Any] | None = None
        began, stopped = time.perf_counter(), False
        while step < stop and not (pending and self.requests and self.requests.are_waiting()):
            order = self.data.order
            count = min(self.config.train.steps_per_dispatch, stop - step, order.block_end(step) - step)
            stopped = not self.stop_agreement.may_run_to(step + count)
            if stopped:
                break
            dispatch = self.dispatches[order.bucket(step)]
            state, metrics = dispatch(state, self.frozen, self.data.source(step), self.data.key, np.int32(count))
            if pending:
                began = self.log(*pending, began, bar)
            pending = (step, count, metrics)
            step += count
        if pending:
            self.log(*pending, began, bar)
        return state, step, stopped

    def log(self, start: int, count: int, metrics: Any, began: float, bar: ProgressBar) -> float:
        """Waits for a dispatch, writes its metrics and returns the time at which it was done."""
        values = {name: np.asarray(column)[:count] for name, column in jax.device_get(metrics).items()}
        now = time.perf_counter()
        check_finite(values, start)
        rows = self.config.rows
        rate = rows * count / (now - began)
        common = {"images_per_second": rate} | peak_memory()
        if not self.announced:
            self.announced = True
            left = (now - began) / count * (self.config.train.steps - start) / 60
            info(f"{rate:.1f} images/s, about {left:.1f} min to step {self.config.train.steps} without sampling")
        for index in range(count):
            line = {name: float(column[index]) for name, column in values.items()}
            self.writer.log_step(start + index + 1, line | common)
        bar.set_postfix(f"loss {values['loss'][-1]:.4f}, {rate:.1f} images/s")
        bar.advance(count)
        return now


def check_finite(values: dict[str, np.ndarray], start: int) -> None:
    """Raises RunFailure naming the first step whose loss or gradient is not finite."""
    found = first_not_finite(values, start)
    if found:
        raise RunFailure(
            f"{found} is not finite; the run stopped and its last checkpoint is intact. "
            "Lower --train.learning-rate, then run the same command with another --run-dir."
        )


def first_not_finite(values: dict[str, np.ndarray], start: int) -> str | None:
    """Returns "the loss of step 12", or "the gradient of ...", of the first step where that is not finite."""
    finite = np.isfinite(values["loss"]) & np.isfinite(values["grad_norm"])
    if finite.all():
        return None
    index = int(np.argmin(finite))
    quantity = "gradient" if np.isfinite(values["loss"][index]) else "loss"
    return f"the {quantity} of step {start + index + 1}"


def compile_dispatches(
    dispatches: Sequence[Any], state: TrainState, frozen: dict[str, Params], data: TrainingData
) -> list[Dispatch]:
    """Compiles the train step for every shape of image, announced and timed."""
    compiled = []
    with progress("compile", total=None) as bar:
        for number, (dispatch, cache) in enumerate(zip(dispatches, data.caches, strict=True), start=1):
            began = time.perf_counter()
            source = BatchSource(cache, np.asarray(0, np.int32))
            compiled.append(dispatch.lower(state, frozen, source, data.key, np.int32(1)).compile())
            which = f" {number} of {len(dispatches)}" if len(dispatches) > 1 else ""
            bar.set_postfix(f"train step{which}, {time.perf_counter() - began:.1f} s")
    return compiled
