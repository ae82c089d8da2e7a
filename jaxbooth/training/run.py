"""`train`: the whole job, from a configuration to a trained, sampled and exported run."""

import shutil
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.config import Config
from jaxbooth.console import say
from jaxbooth.data.images import scan
from jaxbooth.data.latents import Bank
from jaxbooth.devices import enable_compilation_cache, warn_about_cpu_fallback
from jaxbooth.errors import RunFailure
from jaxbooth.params import Params
from jaxbooth.pipeline import Base, load_params
from jaxbooth.run_folder import RunFolder, claim, fill_resolution, resolve_paths, state_of
from jaxbooth.sharding import make_mesh
from jaxbooth.training.checkpoint import Checkpoints
from jaxbooth.training.loop import Loop, compile_dispatch, describe_length
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.prepare import (
    Inputs,
    check_config,
    contact_sheet,
    explain_prompts,
    make_bank,
    make_class_images,
    note_pictures,
    read_inputs,
    write_contact_sheet,
)
from jaxbooth.training.state import (
    TrainState,
    checksums,
    initial_state,
    masters_of,
    result_params,
    trained_components,
)
from jaxbooth.training.step import make_dispatch, make_task
from jaxbooth.training.watch import Watch
from jaxbooth.training.writer import Writer
from jaxbooth.weights.diffusers_dir import COMPONENTS
from jaxbooth.weights.pipeline_dir import export_folder
from jaxbooth.weights.resolve import resolve_model


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


def train(config: Config) -> Result:
    """Trains, or continues a run that was interrupted. See the README for what the run folder holds.

    Raises:
        UserError: the input cannot be used as it is.
        RunFailure: the work failed; everything written so far is intact.
    """
    enable_compilation_cache()
    warn_about_cpu_fallback()
    check_config(config)
    config = resolve_paths(config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    base = Base.read(resolve_model(config.model), config.train.dtype)
    config = fill_resolution(config, base)
    tx = make_optimizer(config.train)
    inputs = read_inputs(config, base)
    explain_prompts(config, inputs)
    shown = contact_sheet(inputs)
    run = claim(config)
    write_contact_sheet(run, shown)
    checkpoints = Checkpoints(run.checkpoints, config.train.keep_checkpoints)
    try:
        return Job(config, run, inputs, mesh, tx, checkpoints).execute()
    finally:
        checkpoints.close()


@dataclass
class Job:
    """A run from its folder on. Weights of trained components live in the train state alone once it exists."""

    config: Config
    run: RunFolder
    inputs: Inputs
    mesh: Mesh
    tx: Any
    checkpoints: Checkpoints

    def execute(self) -> Result:
        """Prepares, trains and finishes."""
        total, done = self.config.train.steps, self.checkpoints.latest() or 0
        if done >= total:
            say(f"{self.run.root} is complete at step {done} of {total}; raise --train.steps to train on.")
            if self.config.export and not self.run.export.exists():
                self.export(self.restore())
            return Result(self.run, done, complete=True)
        trained = trained_components(self.config.train.text_encoder)
        params = load_params(self.inputs.base, self.mesh, trained)
        bank, priors = self.make_bank(params)
        start = jax.device_get(checksums(masters_of({name: params[name] for name in trained})))
        frozen = {name: params[name] for name in COMPONENTS if name not in trained}
        state = self.start_state({name: params.pop(name) for name in trained}, done)
        state, step = self.train(state, done, bank, priors, frozen)
        if step < total:
            say(f"stopped and saved at step {step} of {total}; run the same command again to continue.")
            return Result(self.run, step, complete=False)
        self.check_moved(start, state)
        if self.config.export:
            self.export(state)
        say(f"done: {self.run.samples(step)}")
        say(f'draw more: jaxbooth sample {self.run.root} --prompt "{self.config.data.instance_prompt}"')
        return Result(self.run, step, complete=True)

    def make_bank(self, params: dict[str, Params]) -> tuple[Bank, int]:
        """Makes missing class images and encodes everything; returns the bank and the number of class images."""
        config, classes = self.config, self.inputs.classes
        pictures = []
        if classes:
            make_class_images(config, self.inputs.base, params, classes, self.mesh)
            pictures = scan(classes.folder, config.data.class_prompt or "", "--data.class-dir").pictures
        note_pictures(self.run, {"instance": self.inputs.instance.pictures, "class": pictures})
        return make_bank(config, self.inputs, params, pictures, self.mesh), len(pictures)

    def start_state(self, params: dict[str, Params], done: int) -> TrainState:
        """Returns the newest checkpoint's state, or a fresh one made of `params`."""
        if done:
            params.clear()
            say(f"resumed at step {done} of {self.config.train.steps}")
            return self.restore()
        return initial_state(params, self.tx, self.config.train.ema_decay is not None, self.mesh)

    def restore(self) -> TrainState:
        """Reads the newest checkpoint."""
        return self.checkpoints.restore(state_of(self.config, self.inputs.base, self.mesh))

    def train(
        self, state: TrainState, done: int, bank: Bank, priors: int, frozen: dict[str, Params]
    ) -> tuple[TrainState, int]:
        """Compiles and runs the loop."""
        config, images = self.config, len(self.inputs.instance.pictures)
        say(describe_length(config, images))
        writer = Writer(self.run.metrics, self.run.tensorboard, done)
        watch = Watch.make(config, self.inputs.base, self.mesh)

        def validate(state: TrainState, step: int) -> None:
            image, facts = watch.grid(frozen | result_params(state), step)
            writer.grid(step, self.run.samples(step), image, facts)

        try:
            if not done:
                validate(state, 0)
            task = make_task(self.inputs.base, config.train, config.prior_rows, images, priors, config.seed, self.mesh)
            rows, width = config.train.batch_size + config.prior_rows, task.plan.number.size
            if width > rows:
                say(f"{rows} rows are padded to {width} to fill the devices; a larger --train.batch-size costs no more")
            dispatch = make_dispatch(task, self.tx, config.train.steps_per_dispatch, state)
            dispatch = compile_dispatch(dispatch, state, bank)
            return Loop(config, dispatch, bank, self.checkpoints, writer, validate).run(state, done)
        finally:
            writer.close()

    def check_moved(self, start: dict[str, np.ndarray], state: TrainState) -> None:
        """Raises RunFailure if a trained component still equals the base model, bit for bit."""
        end = jax.device_get(checksums(state.params))
        for component, value in start.items():
            if end[component] == value:
                raise RunFailure(
                    f"the {component} did not change in {self.config.train.steps} steps; its gradient is zero."
                )

    def export(self, state: TrainState) -> None:
        """Writes the trained model as a diffusers folder; once it is whole, that of a shorter run makes room."""
        fresh = self.run.export.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        export_folder(self.inputs.base.folder, result_params(state), fresh)
        shutil.rmtree(self.run.export, ignore_errors=True)
        fresh.replace(self.run.export)
        say(f"exported: {self.run.export}")
