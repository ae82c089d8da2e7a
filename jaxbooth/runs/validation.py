"""What happens at a validation: the sample grid, its figures, the small evaluation, and what follows from them."""

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.run_config import Config
from jaxbooth.distributed.arrays import broadcast_from_main
from jaxbooth.metrics.prompts import few_prompts
from jaxbooth.metrics.scorer import (
    EvaluateParams,
    Scorer,
    load_feature_models,
    reference_images,
    training_evaluation,
)
from jaxbooth.params import Params, join
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.drift import DriftMeter
from jaxbooth.runs.early_stopping import EarlyStopping
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.metric_writer import MetricWriter
from jaxbooth.runs.watch import ValidationSampler
from jaxbooth.training.state import TrainState, result_params


@dataclass
class Validation:
    """Watches a run; see the module."""

    config: Config
    run: RunFolder
    sampler: ValidationSampler
    drift_meter: DriftMeter
    evaluate_params: EvaluateParams | None
    frozen: dict[str, Params]
    checkpoints: Checkpoints
    writer: MetricWriter
    early_stopping: EarlyStopping

    @classmethod
    def make(
        cls,
        config: Config,
        run: RunFolder,
        base: BaseModel,
        mesh: Mesh,
        frozen: dict[str, Params],
        checkpoints: Checkpoints,
        writer: MetricWriter,
        done: int,
    ) -> "Validation":
        """Builds everything that the configuration asks for.

        Args:
            frozen: component -> parameters that training does not change; the VAE's are among them.
            done: steps that an earlier process did.
        """
        sampler = ValidationSampler.make(config, base, mesh)
        references = reference_images(config.subjects, config.resolution)
        together = np.stack([pixels for images in references for pixels in images])
        drift_meter = DriftMeter(
            together, ImageEncoder(base, frozen["vae"], mesh), base.vae_config.scaling_factor, run.base_latents
        )
        evaluate_params = None
        if config.evaluation.every:
            models = load_feature_models(config.evaluation.clip, config.evaluation.dino, config.source, mesh)
            scorer = Scorer(models, few_prompts(config.subjects, config.evaluation.num_prompts), references)
            evaluate_params = training_evaluation(config.evaluation, scorer, sampler.image_sampler, config.seed)
        early_stopping = EarlyStopping(run.selection, config, done)
        checkpoints.pinned = early_stopping.selection.pinned
        return cls(config, run, sampler, drift_meter, evaluate_params, frozen, checkpoints, writer, early_stopping)

    def is_due(self, step: int) -> bool:
        """Whether there is something to draw at a step."""
        ends = step in (0, self.config.train.steps)
        return ends or step % self.config.validation.every == 0 or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        """Whether a step is one with metrics."""
        every = self.config.evaluation.every
        return every is not None and (step % every == 0 or step == self.config.train.steps)

    def __call__(self, state: TrainState, step: int) -> None:
        """Draws, measures and writes; saves the state where it is the best so far."""
        params = join(self.frozen, result_params(state))
        drawn = self.sampler.draw(params)
        image, facts = self.sampler.grid(drawn, step)
        self.writer.log_grid(step, self.run.samples(step), image, facts)
        figures = self.drift_meter(*self.sampler.subject_and_class(drawn), step)
        if self.evaluate_params and self.evaluates(step):
            figures |= self.evaluate_params(params)
        figures = broadcast_from_main(figures)
        self.writer.log_validation(step, figures)
        self.early_stopping.observe(step, figures, self.checkpoints.latest())
        self.checkpoints.pinned = self.early_stopping.selection.pinned
        if self.early_stopping.is_best(step):
            self.checkpoints.save(state, step, self.config)

    @property
    def should_stop(self) -> bool:
        """Whether training should end here."""
        return self.early_stopping.selection.stopped_at is not None
