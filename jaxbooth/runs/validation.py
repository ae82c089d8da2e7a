"""Validation: the same prompts with the same seeds, sampled again and again while the model changes, and measured."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxbooth.base.encoded_prompts import EncodedPrompts
from jaxbooth.base.model import BaseModel
from jaxbooth.base.sampling import ImageSampler, configured_sampling
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject, ValidationConfig
from jaxbooth.data.image_grid import image_grid
from jaxbooth.distributed.arrays import broadcast_from_main
from jaxbooth.metrics.prompts import few_prompts
from jaxbooth.metrics.scorer import EvaluateParams, Scorer, load_feature_models, training_evaluation
from jaxbooth.params import Params, join
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.drift import DriftMeter
from jaxbooth.runs.early_stopping import EarlyStopping
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.held_out_latents import class_prompts
from jaxbooth.runs.held_out_loss import HeldOutLoss
from jaxbooth.runs.metric_writer import MetricWriter
from jaxbooth.training.state import TrainState, result_params

MAX_BATCH = 8  # images sampled at once
UNRELATED = ("a red apple", "a blue car")


def validation_prompts(validation: ValidationConfig, subjects: Sequence[Subject]) -> list[str]:
    """Returns the prompts to sample; by default the subject, the bare class and something unrelated, to show drift."""
    if validation.prompts:
        return list(validation.prompts)
    prompts = [prompt for subject in subjects for prompt in (subject.instance_prompt, subject.class_prompt)]
    return distinct(prompt for prompt in (*prompts, unrelated_prompt(subjects)) if prompt)


def unrelated_prompt(subjects: Sequence[Subject]) -> str:
    """Returns the first subject's prompt with another thing in its place: "an emoji of a red apple" for an emoji."""
    prompts = [prompt for subject in subjects for prompt in (subject.class_prompt, subject.instance_prompt) if prompt]
    known = " ".join(prompts).lower()
    subject = next((noun for noun in UNRELATED if noun.split()[-1] not in known), UNRELATED[0])
    medium, of, _ = prompts[0].partition(" of ")
    return f"{medium}{of}{subject}" if of else subject


def measured_prompts(validation: ValidationConfig, subjects: Sequence[Subject]) -> list[str]:
    """Returns all prompts of a validation: the grid's, and each subject's and class's, which are measured in any case.

    Returns:
        Distinct prompts, those of the grid first.
    """
    grid = validation_prompts(validation, subjects)
    return distinct([*grid, *instance_prompts(subjects), *class_prompts(subjects)])


def instance_prompts(subjects: Sequence[Subject]) -> list[str]:
    """Returns the distinct prompts of the subjects."""
    return distinct(subject.instance_prompt for subject in subjects)


def distinct(prompts: Iterable[str]) -> list[str]:
    """Returns prompts without repetitions, in order."""
    return list(dict.fromkeys(prompts))


class ValidationSampler:
    """Samples the prompts of the grid, and the instance and class prompts, which are measured whether shown or not."""

    def __init__(
        self, image_sampler: ImageSampler, validation: ValidationConfig, subjects: Sequence[Subject], seed: int
    ):
        self.image_sampler = image_sampler
        self.grid_prompts = validation_prompts(validation, subjects)
        self.instance_prompts = instance_prompts(subjects)
        self.class_prompts = class_prompts(subjects)
        self.prompts = measured_prompts(validation, subjects)
        self.images_per_prompt, self.seed = validation.images_per_prompt, seed

    def sample(self, params: dict[str, Params]) -> np.ndarray:
        """Returns (prompts, images, H, W, 3) uint8; image i of every prompt starts from the same noise."""
        count = self.images_per_prompt
        prompts = [prompt for prompt in self.prompts for _ in range(count)]
        images = self.image_sampler.generate(params, prompts, self.seed, list(range(count)) * len(self.prompts))
        return images.reshape(-1, count, *images.shape[1:])

    def sample_prompt(
        self, params: dict[str, Params], prompt: str, seed: int, num: int, encoded: EncodedPrompts | None = None
    ) -> np.ndarray:
        """Returns (num, H, W, 3) uint8 of another prompt, by the program of `sample`; image i depends on (seed, i).

        Args:
            encoded: embeddings of the negative prompt and this one, where those of the sampler lack it.
        """
        prompts = len({self.image_sampler.config.negative_prompt, *self.prompts})
        sampler = self.image_sampler.with_encoded(encoded) if encoded else self.image_sampler
        return sampler.generate(params, [prompt] * num, seed, range(num), prompts)

    def grid(self, images: np.ndarray, step: int) -> tuple[Image.Image, dict[str, Any]]:
        """Returns the labelled grid of what was sampled, one prompt a row, and the metadata for its text chunk."""
        labels = [prompt for prompt in self.grid_prompts for _ in range(self.images_per_prompt)]
        metadata = {"prompts": json.dumps(self.grid_prompts), "seed": self.seed, "step": step}
        shown = images[: len(self.grid_prompts)].reshape(-1, *images.shape[2:])
        grid = image_grid(list(shown), labels, self.images_per_prompt)
        return grid, metadata | self.image_sampler.config.metadata()

    def images_of(self, prompts: Sequence[str], images: np.ndarray) -> np.ndarray:
        """Returns those of the sampled images that belong to some prompts, (n, H, W, 3) uint8."""
        rows = np.array([self.prompts.index(prompt) for prompt in prompts], np.intp)
        return images[rows].reshape(-1, *images.shape[2:])


def validation_image_sampler(
    config: Config, base: BaseModel, mesh: Mesh, encoded: EncodedPrompts | None = None
) -> ImageSampler:
    """Returns what samples the prompts of a run's validations in batches of about one size.

    Args:
        encoded: see `ImageSampler`.
    """
    images = len(measured_prompts(config.validation, config.subjects)) * config.validation.images_per_prompt
    batches = -(-images // MAX_BATCH)
    sampling = configured_sampling(config.validation, config.resolution)
    return ImageSampler(base, mesh, sampling, -(-images // batches), encoded=encoded)


@dataclass
class Validation:
    """Samples and measures a model while it trains, and says which checkpoints stay and when to stop.

    Attributes:
        evaluate_params: measures with feature models, if the configuration asks for that.
        held_out_loss: measures the held-out images, if there are any.
        frozen: component -> parameters that training does not change.
    """

    config: Config
    run: RunFolder
    sampler: ValidationSampler
    drift_meter: DriftMeter
    evaluate_params: EvaluateParams | None
    held_out_loss: HeldOutLoss | None
    frozen: dict[str, Params]
    checkpoints: Checkpoints
    writer: MetricWriter
    early_stopping: EarlyStopping

    def __post_init__(self) -> None:
        self.checkpoints.pinned = self.early_stopping.selection.pinned

    def is_due(self, step: int) -> bool:
        """Whether there is something to sample at a step."""
        ends = step in (0, self.config.train.steps)
        return ends or step % self.config.validation.every == 0 or self.evaluates(step)

    def evaluates(self, step: int) -> bool:
        """Whether feature models measure a step."""
        every = self.config.evaluation.every
        return every is not None and (step % every == 0 or step == self.config.train.steps)

    def is_missing(self, step: int) -> bool:
        """Whether an earlier process saved a step and ended before it had validated it. Every process must call it."""
        missing = self.is_due(step) and not self.writer.has_validation(step)
        return broadcast_from_main({"missing": float(missing)})["missing"] > 0

    def held_out_losses(self, state: TrainState) -> dict[str, float]:
        """Returns the losses on held-out images; on those of the class once the base model's are known."""
        if not self.held_out_loss:
            return {}
        return self.held_out_loss(join(self.frozen, result_params(state)), self.drift_meter.base_latents())

    def __call__(
        self,
        state: TrainState,
        step: int,
        losses: dict[str, float] | None = None,
        images: np.ndarray | None = None,
    ) -> None:
        """Samples, measures and writes; saves the state where it is the best so far.

        Args:
            losses: on held-out images, where they were measured already.
            images: see `ValidationSampler.sample`, where they were sampled already.
        """
        params = join(self.frozen, result_params(state))
        images = self.sampler.sample(params) if images is None else images
        grid, metadata = self.sampler.grid(images, step)
        self.writer.log_grid(step, self.run.samples(step), grid, metadata)
        subject_images = self.sampler.images_of(self.sampler.instance_prompts, images)
        class_images = self.sampler.images_of(self.sampler.class_prompts, images)
        metrics = self.drift_meter(subject_images, class_images, step)
        metrics |= self.held_out_losses(state) if losses is None else losses
        if self.evaluate_params and self.evaluates(step):
            metrics |= self.evaluate_params(params)
        metrics = broadcast_from_main(metrics)
        self.writer.log_validation(step, metrics)
        self.early_stopping.observe(step, metrics, self.checkpoints.latest())
        self.checkpoints.pinned = self.early_stopping.selection.pinned
        if self.early_stopping.is_best(step):
            self.checkpoints.save(state, step, self.config)

    @property
    def should_stop(self) -> bool:
        """Whether training ends here."""
        return self.early_stopping.selection.stopped_at is not None


def make_validation(
    config: Config,
    run: RunFolder,
    mesh: Mesh,
    references: Sequence[Sequence[np.ndarray]],
    frozen: dict[str, Params],
    checkpoints: Checkpoints,
    writer: MetricWriter,
    done: int,
    image_sampler: ImageSampler,
    image_encoder: ImageEncoder,
    held_out_loss: HeldOutLoss | None = None,
) -> Validation:
    """Builds everything that the configuration asks for.

    Args:
        references: center squares of each subject's images, (H, W, 3) uint8.
        frozen: component -> parameters that training does not change.
        done: steps that an earlier process did.
        image_sampler: see `validation_image_sampler`; runs on one base model can share it.
    """
    sampler = ValidationSampler(image_sampler, config.validation, config.subjects, config.seed)
    together = np.stack([pixels for images in references for pixels in images])
    drift_meter = DriftMeter(together, image_encoder, image_sampler.base.vae_config, run.base_latents)
    evaluation, evaluate_params = config.evaluation, None
    if evaluation.every:
        models = load_feature_models(evaluation.clip, evaluation.dino, config.source, mesh)
        scorer = Scorer(models, few_prompts(config.subjects, evaluation.num_prompts), references)
        evaluate_params = training_evaluation(evaluation, scorer, sampler.image_sampler, config.seed)
    return Validation(
        config=config,
        run=run,
        sampler=sampler,
        drift_meter=drift_meter,
        evaluate_params=evaluate_params,
        held_out_loss=held_out_loss,
        frozen=frozen,
        checkpoints=checkpoints,
        writer=writer,
        early_stopping=EarlyStopping(run.selection, config.validation, evaluation, done),
    )
