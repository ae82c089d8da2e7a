"""The run of one subject among others: from its folder until it is done, between which it is in a slot."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxbooth.base.trainable import init_trainable
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.rules import check_config
from jaxbooth.config.run_config import Config
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.distributed.group import SingleProcess
from jaxbooth.errors import RunFailure
from jaxbooth.many.encoders import SubjectData
from jaxbooth.many.program import Program
from jaxbooth.prng import key_data
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.contact_sheet import contact_sheet, write_contact_sheet
from jaxbooth.runs.disk_needs import check_entries
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.inputs import RunInputs, record_images, scan_class_folders, scan_inputs
from jaxbooth.runs.lock import lock_run
from jaxbooth.runs.loop import first_not_finite
from jaxbooth.runs.metric_writer import MetricWriter
from jaxbooth.runs.overlap import check_run_folders
from jaxbooth.runs.restore import abstract_run_state, confirm_base
from jaxbooth.runs.training_run import export_result
from jaxbooth.runs.validation import Validation, make_validation
from jaxbooth.storage.remote import as_path
from jaxbooth.training.slot_rows import SubjectRows, subject_rows
from jaxbooth.training.state import TrainState, result_params

ALONE = SingleProcess(stopped=lambda: None)  # a subject's run has one process, which is asked to stop as a whole


class Diverged(RunFailure):
    """A loss or gradient is not finite: a state of before would come to the same."""


@dataclass
class SlotRun:
    """A subject that is ready to train, or trains.

    Attributes:
        key: of its seed.
        state: on the host, until it is in a slot.
        step: updates that are done, or that the devices were asked for.
        loss: of the last one that is logged.
        held: its folder's lock and open files.
        lost: what became of its folder, if that is gone.
    """

    name: str
    config: Config
    run: RunFolder
    program: Program
    data: SubjectData
    rows: SubjectRows
    key: np.ndarray
    state: TrainState | None
    step: int
    validation: Validation
    writer: MetricWriter
    checkpoints: Checkpoints
    held: ExitStack
    lost: list[str]
    loss: float | None = None

    @property
    def steps(self) -> int:
        """How many there will be."""
        return self.config.train.steps

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, or training ended early."""
        return self.step >= self.steps or self.validation.should_stop

    def next_stop(self) -> int:
        """Returns the next step after which the host has something to do."""
        every = self.config.validation.every
        return min(self.steps, self.step - self.step % every + every)

    def log(self, metrics: dict[str, np.ndarray], start: int, seconds: float) -> None:
        """Logs the metrics, (count,), of steps after `start`.

        Args:
            seconds: that they took, together with those of the other slots.

        Raises:
            RunFailure: a loss or gradient is not finite, or its folder is gone.
        """
        if self.lost:
            raise RunFailure(self.lost[0])
        found = first_not_finite(metrics, start)
        if found:
            raise Diverged(f"{found} is not finite; lower its learning_rate and run the same command again.")
        count = len(metrics["loss"])
        for index in range(count):
            line = {name: float(column[index]) for name, column in metrics.items()}
            self.writer.log_step(start + index + 1, line | {"images_per_second": self.config.rows * count / seconds})
        self.loss = float(metrics["loss"][-1])

    def begin(self) -> None:
        """Validates the step that it begins with, where an earlier process has not done that."""
        if self.validation.is_missing(self.step):
            assert self.state is not None
            images = None if self.step else self.program.sample_base(self.validation.sampler)
            self.validation(self.state, self.step, images=images)
            self.writer.flush()

    def validate(self, state: TrainState) -> None:
        """Samples and measures."""
        self.validation(state, self.step)
        self.writer.flush()

    def finish(self, state: TrainState) -> None:
        """Writes the checkpoint and the export of a run that is done."""
        self.checkpoints.save(state, self.step, self.config)
        self.checkpoints.wait()
        if self.config.export:
            trained: dict[str, Any] = result_params(state)
            export_result(self.config, self.program.base, self.program.mesh, self.run, trained)

    def close(self) -> None:
        """Closes its files and gives its folder back."""
        self.held.close()


def open_slot_run(
    program: Program,
    name: str,
    config: Config,
    saved: TrainState | None,
    claimed: Callable[[], None],
) -> SlotRun:
    """Checks a subject's input, claims its folder, encodes what it is trained on, and makes or reads its state.

    Args:
        saved: its state, if an earlier process left one.
        claimed: called once no other process can train the subject.

    Raises:
        UserError: the input cannot be used; or another process trains the subject.
    """
    base, mesh = program.base, program.mesh
    check_config(config)
    check_run_folders(config)
    check_entries(RunFolder(as_path(config.run_dir)))
    inputs = scan_inputs(config, base)
    images = TrainingImages(config.resolution, config.data.masks)
    sheet = contact_sheet(config, inputs, images)
    lost: list[str] = []
    with ExitStack() as held:
        run = held.enter_context(lock_run(config, ALONE, lost.append, is_started=saved is not None))
        claimed()
        confirm_base(run, base, record=True)
        write_contact_sheet(run, sheet)
        data = encode_data(program, config, run, inputs, images)
        key = key_data(config.seed)
        rates = learning_rates(config)
        rows = subject_rows(program.spec, data.slices, data.images, data.captions, key, config.train, rates)
        checkpoints = Checkpoints(run.checkpoints, config.train.max_checkpoints)
        held.callback(checkpoints.close)
        state = start_state(program, config, checkpoints, saved)
        step = int(state.step)
        writer = MetricWriter(run.metrics, run.tensorboard, step)
        held.callback(writer.close)
        references = [[images.square(file) for file in folder.images] for folder in inputs.instances]
        validation = make_validation(
            config, run, mesh, references, program.params, checkpoints, writer, step, program.image_sampler,
            program.encoders.images,
        )  # fmt: skip
        return SlotRun(
            name, config, run, program, data, rows, key, state, step, validation, writer, checkpoints, held.pop_all(),
            lost,
        )  # fmt: skip


def start_state(program: Program, config: Config, checkpoints: Checkpoints, saved: TrainState | None) -> TrainState:
    """Returns the state that is furthest: what was saved, that of a run that is to have more steps, or a fresh one."""
    base, done = program.base, checkpoints.latest() or 0
    if saved is not None and int(saved.step) >= done:
        return saved
    if done:
        state, _ = checkpoints.restore(abstract_run_state(config, base, program.mesh))
        return jax.device_get(state)
    return program.first_state(init_trainable(base, config, program.shapes, program.params))


def encode_data(
    program: Program, config: Config, run: RunFolder, inputs: RunInputs, images: TrainingImages
) -> SubjectData:
    """Generates class images that are missing, and encodes everything."""
    for classes in inputs.classes:
        program.generate_class_images(classes)
    class_files = [file for folder in scan_class_folders((), inputs.classes) for file in folder.images]
    record_images(run, {"instance": inputs.images, "class": class_files})
    return program.encoders.encode(config, inputs, images, class_files)
