"""What a train step is compiled for: everything about it that does not change while a run trains."""

from dataclasses import dataclass

import optax

from jaxbooth.base.model import BaseModel
from jaxbooth.config.loss import LossConfig
from jaxbooth.config.prior import ROW_METHODS, PriorConfig, RowMethod, outside_mask_weight
from jaxbooth.config.rates import LearningRates
from jaxbooth.config.schema import TextConfig, TrainConfig
from jaxbooth.diffusion.loss import OUTSIDE_MASK_LOSS, REPORTED, TERM_NAMES, LossSpec, Role
from jaxbooth.diffusion.noise import TimestepSampling, training_schedule
from jaxbooth.diffusion.weighting import Weighting
from jaxbooth.models.remat import Remat
from jaxbooth.sharding import AnyMesh, batch_shards
from jaxbooth.training.layout import BatchLayout, RoleWeights, RowCounts, SubjectSlices, batch_layout
from jaxbooth.training.optimizer import reported_learning_rate

ROLE_OF: dict[RowMethod, Role] = {
    "class-images": Role.CLASS,
    "output-preservation": Role.OUTPUT_PRESERVATION,
    "blank-prompt": Role.BLANK_PROMPT,
}


@dataclass(frozen=True)
class TrainStepSpec:
    """What the step needs besides state, frozen parameters, batch source and key; all of it static.

    Attributes:
        slices: where the subjects' and the classes' images lie in the latent cache.
        layout: roles of the rows.
        counts: rows of a whole step, without padding.
        prior_weighting, distilled, outside_mask_weight: see `LossSpec`.
        weight_anchor: weight of the squared change of what is trained; 0 leaves it out.
        trains_text: captions are encoded in the step, by text encoders or embeddings that are trained.
        learning_rate: step of the run -> the rate to report.
        slots: subjects that train side by side, each with a whole batch of this layout; 0: a run of its own.
    """

    base: BaseModel
    mesh: AnyMesh
    slices: SubjectSlices
    layout: BatchLayout
    counts: RowCounts
    loss: LossConfig
    prior_weighting: Weighting | None
    distilled: tuple[Role, ...]
    outside_mask_weight: float
    weight_anchor: float
    caption_dropout: float
    trains_text: bool
    remat: Remat
    ema_decay: float | None
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    slots: int = 0

    @property
    def layout_shards(self) -> int:
        """Parts of each micro-batch of the layout: one for each device that shares it."""
        return 1 if self.slots else batch_shards(self.mesh)

    @property
    def loss_spec(self) -> LossSpec:
        """What is done with a row's error."""
        loss = self.loss
        return LossSpec(
            prediction_space=loss.prediction_space or self.base.schedule.prediction_type,
            weighting=loss.weighting,
            prior_weighting=self.prior_weighting,
            snr_gamma=loss.snr_gamma,
            loss_type=loss.loss_type,
            huber_c=loss.huber_c,
            distilled=self.distilled,
            outside_mask_weight=self.outside_mask_weight,
        )

    @property
    def timestep_sampling(self) -> TimestepSampling:
        """The distribution of the timesteps."""
        loss = self.loss
        high = None if loss.max_timestep is None else loss.max_timestep + 1
        return TimestepSampling(
            loss.timestep_sampling,
            loss.timestep_mean,
            loss.timestep_std,
            low=loss.min_timestep,
            high=high,
            mode_scale=loss.mode_scale,
        )

    @property
    def needs_frozen_prediction(self) -> bool:
        """Whether any row's target is the frozen model's prediction."""
        return bool(self.distilled) or self.outside_mask_weight > 0

    @property
    def reported_roles(self) -> tuple[Role, ...]:
        """The roles whose losses are metrics."""
        return tuple(role for role in Role if role in REPORTED or self.counts[role])

    @property
    def row_terms(self) -> tuple[str, ...]:
        """Names of the losses of rows, which are metrics."""
        outside = (OUTSIDE_MASK_LOSS,) if self.outside_mask_weight else ()
        return (*(TERM_NAMES[role] for role in self.reported_roles), *outside)


def make_train_step_spec(
    base: BaseModel,
    mesh: AnyMesh,
    slices: SubjectSlices,
    optimizer: optax.GradientTransformation,
    train: TrainConfig,
    loss: LossConfig,
    prior: PriorConfig,
    text: TextConfig,
    rates: LearningRates,
    size: tuple[int, int],
    slots: int = 0,
) -> TrainStepSpec:
    """Lays out the rows of a run's steps, and takes from the configuration's sections what a step needs.

    Args:
        size: height and width of the images in pixels, by which a flow model's timesteps may be shifted.
        slots: see `TrainStepSpec`.
    """
    counts = RowCounts(train.batch_size, *(prior.rows_of(method, train.batch_size) for method in ROW_METHODS))
    weights = RoleWeights(*(prior.weights.get(method, 0.0) for method in ROW_METHODS))
    micro_batches = train.gradient_accumulation_steps
    return TrainStepSpec(
        base=base.with_schedule(training_schedule(base.schedule, loss.timestep_shift, base.image_tokens(*size))),
        mesh=mesh,
        slices=slices,
        layout=batch_layout(counts, weights, micro_batches, 1 if slots else batch_shards(mesh)),
        counts=counts,
        loss=loss,
        prior_weighting=prior.weighting,
        distilled=tuple(ROLE_OF[method] for method in prior.distilled_methods),
        outside_mask_weight=outside_mask_weight(loss, prior),
        weight_anchor=prior.weights.get("weight-anchor", 0.0),
        caption_dropout=text.caption_dropout,
        trains_text=train.text_encoder or bool(text.placeholder_tokens),
        remat=train.remat_policy,
        ema_decay=train.ema_decay,
        optimizer=optimizer,
        learning_rate=reported_learning_rate(train, rates),
        slots=slots,
    )
