"""What happens at a validation: the sample grid, its figures, the small evaluation, and what follows from them."""

from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.run_config import Config
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
from jaxbooth.runs.drift import Gauge
from jaxbooth.runs.early_stopping import Keeper
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.metric_writer import Writer
from jaxbooth.runs.watch import Watch
from jaxbooth.training.state import TrainState, result_params
from jaxbooth.transfer import agreed


@dataclass
class Validation:
    """Watches a run; see the module."""

    config: Config
    run: RunFolder
    watch: Watch
    gauge: Gauge
    evaluate_params: EvaluateParams | None
    frozen: dict[str, Params]
    checkpoints: Checkpoints
    writer: Writer
    keeper: Keeper

    @classmethod
    def make(
        cls,
        config: Config,
        run: RunFolder,
        base: BaseModel,
        mesh: Mesh,
        frozen: dict[str, Params],
        checkpoints: Checkpoints,
        writer: Writer,
        done: int,
    ) -> "Validation":
        """Builds everything that the configuration asks for.

        Args:
            frozen: component -> parameters that training does not change; the VAE's are among them.
            done: steps that an earlier process did.
        """
        watch = Watch.make(config, base, mesh)
        references = reference_images(config.subjects, config.resolution)
        together = np.stack([pixels for images in references for pixels in images])
        gauge = Gauge(
            together, ImageEncoder(base, frozen["vae"], mesh), base.vae_config.scaling_factor, run.base_latents
        )
        evaluate_params = None
        if config.evaluation.every:
            models = load_feature_models(config.evaluation.clip, config.evaluation.dino, config.source, mesh)
            scorer = Scorer(models, few_prompts(config.subjects, config.evaluation.num_prompts), references)
            evaluate_params = training_evaluation(config.evaluation, scorer, watch.image_sampler, config.seed)
        keeper = Keeper(run.kept, config, done)
        checkpoints.pinned = keeper.kept.pinned
        return cls(config, run, watch, gauge, evaluate_params, frozen, checkpoints, writer, keeper)

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
        drawn = self.watch.draw(params)
        image, facts = self.watch.grid(drawn, step)
        self.writer.grid(step, self.run.samples(step), image, facts)
        figures = self.gauge(*self.watch.subject_and_class(drawn), step)
        if self.evaluate_params and self.evaluates(step):
            figures |= self.evaluate_params(params)
        figures = agreed(figures)
        self.writer.figures(step, figures)
        self.keeper.see(step, figures, self.checkpoints.latest())
        self.checkpoints.pinned = self.keeper.kept.pinned
        if self.keeper.is_best(step):
            self.checkpoints.save(state, step, self.config)

    @property
    def has_seen_enough(self) -> bool:
        """Whether training should end here."""
        return self.keeper.kept.stopped is not None
