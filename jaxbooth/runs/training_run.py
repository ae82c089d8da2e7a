"""A run from its locked folder on: data, train state, loop, export."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.trainable import fully_trained, init_trainable, shard_params, trained_shapes
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import info, print_result, shell_quote
from jaxbooth.console.progress import progress
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.distributed.arrays import to_host
from jaxbooth.distributed.group import SingleProcess
from jaxbooth.distributed.run_scope import is_shared, is_writer
from jaxbooth.errors import RunFailure
from jaxbooth.export.export import default_format, make_export, write_export
from jaxbooth.export.metadata import run_metadata
from jaxbooth.export.notes import reader_notes
from jaxbooth.export.verify import verify_export
from jaxbooth.params import Params, flatten_components
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.early_stopping import Selection, early_stop_step, summary
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.held_out_loss import HeldOutLoss
from jaxbooth.runs.inputs import (
    RunInputs,
    generate_all_class_images,
    record_images,
    scan_class_folders,
)
from jaxbooth.runs.loop import TrainingLoop, compile_dispatches
from jaxbooth.runs.metric_writer import MetricWriter
from jaxbooth.runs.prompts import RunPrompts, encode_run_prompts
from jaxbooth.runs.request_sampler import RequestSampler
from jaxbooth.runs.restore import abstract_run_state
from jaxbooth.runs.start_notes import describe_length, learning_rate_jump, log_padding
from jaxbooth.runs.training_data import TrainingData, encode_training_data
from jaxbooth.runs.validation import make_validation, validation_image_sampler
from jaxbooth.sharding import batch_shards
from jaxbooth.training.reference import copy_references
from jaxbooth.training.spec import make_train_step_spec
from jaxbooth.training.state import TrainState, checksums, initial_state, result_params
from jaxbooth.training.step import make_dispatch


@dataclass(frozen=True)
class Result:
    """What a call to `train` leaves behind.

    Attributes:
        run: the folder.
        step: optimizer updates done so far.
        complete: whether that is all of them.
    """

    run: RunFolder
    step: int
    complete: bool


@dataclass
class TrainingRun:
    """A run from its folder on. Weights of what is trained live in the train state alone once it exists.

    Attributes:
        before: the configuration that the run had until now.
    """

    config: Config
    before: Config
    run: RunFolder
    inputs: RunInputs
    images: TrainingImages
    mesh: Mesh
    optimizer: optax.GradientTransformation
    checkpoints: Checkpoints
    processes: SingleProcess

    @property
    def base(self) -> BaseModel:
        """The base model, ready for the run's adapters and placeholder tokens."""
        return self.inputs.base

    def execute(self) -> Result:
        """Prepares, trains and finishes."""
        total, done = self.config.train.steps, self.checkpoints.latest() or 0
        early_stop = early_stop_step(self.run.selection)
        stopped_early = early_stop is not None and done >= early_stop and self.config.evaluation.patience
        if done >= total or stopped_early:
            return self.finish_complete(done)
        shapes = trained_shapes(self.base, self.config)
        whole = fully_trained(self.base, shapes)
        self.generate_before_quantization()
        prompts = encode_run_prompts(self.config, self.base, self.inputs, self.mesh)
        params = load_params(self.base, self.mesh, whole, self.base.resident_components)
        data = self.encode_data(params, prompts)
        values = shard_params(init_trainable(self.base, self.config, shapes, params), self.mesh)
        start = jax.device_get(checksums(flatten_components(values)))
        reference = self.copy_references({name: params[name] for name in whole})
        frozen = {name: component for name, component in params.items() if name not in whole}
        params.clear()
        state, done = self.start_state(values, done)
        state, step, selection = self.train(state, done, data, frozen, reference, prompts)
        for sentence in summary(selection, self.config.validation, self.config.evaluation):
            print_result(sentence)
        if step < total and selection.stopped_at is None:
            print_result(f"stopped and saved at step {step} of {total}; run the same command again to continue.")
            return Result(self.run, step, complete=False)
        self.check_moved(start, state)
        if self.config.export:
            self.export(state)
        print_result(f"done: {self.run.samples(step)}")
        prompt = shell_quote(self.config.subjects[0].instance_prompt)
        print_result(f"generate more: jaxbooth sample {shell_quote(str(self.run.root))} --prompt {prompt}")
        return Result(self.run, step, complete=True)

    def finish_complete(self, done: int) -> Result:
        """Exports a run that has done all its steps, if that was not done yet."""
        if self.config.export and not self.run.is_exported:
            state, step = self.restore()
            if step < done:  # the last checkpoint was damaged, and is aside now
                del state
                return self.execute()
            self.export(state)
        total = self.config.train.steps
        flags = "--train.steps" if done >= total else "--evaluation.patience"
        print_result(f"{self.run.root} is complete at step {done} of {total}; raise {flags} to train on.")
        return Result(self.run, done, complete=True)

    def generate_before_quantization(self) -> None:
        """Generates missing class images with the full weights, where that is asked for; they are dropped again."""
        missing = any(classes.missing for classes in self.inputs.classes)
        if not self.config.prior.full_precision or not missing:
            return
        full = self.base.with_quantization("none")
        prompts = encode_run_prompts(self.config, full, self.inputs, self.mesh)
        params = load_params(full, self.mesh, components=full.resident_components)
        generate_all_class_images(self.config, full, params, self.inputs.classes, self.mesh, prompts.sampled)

    def encode_data(self, params: dict[str, Params], prompts: RunPrompts) -> TrainingData:
        """Generates missing class images and encodes everything."""
        config = self.config
        generate_all_class_images(config, self.base, params, self.inputs.classes, self.mesh, prompts.sampled)
        self.processes.exchange("class images are written")
        folders = scan_class_folders(config.text.placeholder_tokens, self.inputs.classes)
        class_files = [folder.images for folder in folders]
        all_class_files = [file for files in class_files for file in files]
        groups = {"instance": self.inputs.images, "class": all_class_files}
        record_images(self.run, groups | ({"held_out": self.inputs.held_out_images} if config.has_held_out else {}))
        return encode_training_data(config, self.inputs, self.images, params, class_files, self.mesh, prompts.captions)

    def copy_references(self, whole: dict[str, Params]) -> dict[str, Params]:
        """Copies what prior terms compare the model with, of the components that are trained themselves."""
        config = self.config
        return copy_references(self.base, whole, config.needs_reference, config.is_anchored)

    def start_state(self, values: dict[str, Params], done: int) -> tuple[TrainState, int]:
        """Returns the newest sound checkpoint's state and step, or a fresh state made of `values`."""
        if not done:
            return initial_state(values, self.optimizer, self.config.train.ema_decay is not None, self.mesh), 0
        values.clear()
        state, done = self.restore()
        info(f"resumed at step {done} of {self.config.train.steps}")
        jump = learning_rate_jump(self.before, self.config, done)
        if jump:
            info(jump)
        return state, done

    def restore(self) -> tuple[TrainState, int]:
        """Reads the newest sound checkpoint."""
        with progress("restore", total=None, transient=True):
            return self.checkpoints.restore(abstract_run_state(self.config, self.base, self.mesh))

    def train(
        self,
        state: TrainState,
        done: int,
        data: TrainingData,
        frozen: dict[str, Params],
        reference: dict[str, Params],
        prompts: RunPrompts,
    ) -> tuple[TrainState, int, Selection]:
        """Compiles the steps and runs the loop."""
        config, base, mesh = self.config, self.base, self.mesh
        info(describe_length(config, len(self.inputs.images)))
        writer = MetricWriter(self.run.metrics, self.run.tensorboard, done)
        try:
            references = [[self.images.square(file) for file in folder.images] for folder in self.inputs.instances]
            held_out = self.inputs.held_out_images
            held_out_loss = (
                HeldOutLoss(config, self.inputs, mesh, frozen["vae"], prompts.held_out) if held_out else None
            )
            image_sampler = validation_image_sampler(config, base, mesh, prompts.sampled)
            image_encoder = ImageEncoder(base, frozen["vae"], mesh)
            validation = make_validation(
                config, self.run, mesh, references, frozen, self.checkpoints, writer, done, image_sampler,
                image_encoder, held_out_loss,
            )  # fmt: skip
            if not done or validation.is_missing(done):
                validation(state, done)
            rates = learning_rates(config)
            specs = [
                make_train_step_spec(
                    base,
                    mesh,
                    slices,
                    self.optimizer,
                    config.train,
                    config.loss,
                    config.prior,
                    config.text,
                    rates,
                    size,
                )
                for slices, size in zip(data.slices, self.inputs.shapes, strict=True)
            ]
            log_padding(config.train, config.prior, specs[0].layout.index.size, batch_shards(mesh))
            step_components = set(base.trainable_components(config.trains_text))
            step_frozen = {name: params for name, params in frozen.items() if name in step_components} | reference
            dispatches = [make_dispatch(spec, config.train.steps_per_dispatch, state) for spec in specs]
            compiled = compile_dispatches(dispatches, state, step_frozen, data)
            stop_agreement = self.processes.stop_agreement
            requests = RequestSampler(
                self.run.root, validation.sampler, frozen, self.processes.exchange, stop_agreement
            )
            loop = TrainingLoop(
                config, compiled, data, step_frozen, self.checkpoints, writer, validation, stop_agreement, requests
            )
            with closing(requests):
                return *loop.run(state, done), validation.early_stopping.selection
        finally:
            writer.close()

    def check_moved(self, start: Mapping[str, np.ndarray], state: TrainState) -> None:
        """Raises RunFailure if a trained component still equals where it started, bit for bit."""
        end = jax.device_get(checksums(state.params))
        for component, value in start.items():
            if end[component] == value:
                raise RunFailure(
                    f"the {component} did not change in {self.config.train.steps} steps; its gradient is zero."
                )

    def export(self, state: TrainState) -> None:
        """Writes the result in its natural format; once it is whole, that of a shorter run makes room.

        Process 0 does so; with several, it gathers what was trained in its host's memory.
        """
        trained: dict[str, Any] = result_params(state)
        if is_shared():
            trained = jax.tree.map(to_host, trained)
        if is_writer():
            export_result(self.config, self.base, self.mesh, self.run, trained)


def export_result(config: Config, base: BaseModel, mesh: Mesh, run: RunFolder, trained: dict[str, Any]) -> None:
    """Writes the export of a run that is done and verifies it."""
    with run.new_export() as folder:
        metadata = run_metadata(config, trained, config.train.steps)
        format = default_format(config.lora, config.text)
        export = make_export(base, trained, mesh, folder, format, metadata=metadata)
        write_export(export)
        verified = verify_export(export)
    print_result(f"exported: {run.export}, {', '.join(verified)}")
    for note in reader_notes(export):
        info(note)
