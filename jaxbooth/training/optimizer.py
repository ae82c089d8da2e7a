"""Optimizers and learning-rate schedules, all optax's."""

from typing import Any

import optax
from optax.contrib import ScheduleFreeState, prodigy, schedule_free_adamw, schedule_free_eval_params

from jaxbooth.config import TrainConfig
from jaxbooth.errors import UserError
from jaxbooth.params import Params

DEFAULT_B2 = {"lion": 0.99}
DEFAULT_RATE = {"prodigy": 1.0}


def peak_rate(config: TrainConfig) -> float:
    """Returns the learning rate that is set, or the optimizer's usual one for fine-tuning a whole UNet."""
    return config.learning_rate or DEFAULT_RATE.get(config.optimizer, 5e-6)


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Returns step -> learning rate: linear warmup, then constant, or down to 0 at the last step.

    Raises:
        UserError: the warmup does not end before the run.
    """
    peak, rest = peak_rate(config), config.steps - config.warmup_steps
    if rest <= 0:
        raise UserError(f"--train.warmup-steps {config.warmup_steps} leaves nothing of --train.steps {config.steps}.")
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[config.schedule]
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Returns clipping by the global norm followed by the chosen update rule.

    Raises:
        UserError: the schedule does not go with the optimizer.
    """
    rate, decay = learning_rate_schedule(config), config.weight_decay
    b1, eps = config.b1, config.eps
    b2 = DEFAULT_B2.get(config.optimizer, 0.999) if config.b2 is None else config.b2
    if config.optimizer == "schedule_free_adamw" and config.schedule != "constant":
        raise UserError("--train.schedule must be constant with --train.optimizer schedule_free_adamw.")
    if config.optimizer == "schedule_free_adamw" and b1 == 0:
        raise UserError("--train.b1 must not be 0 with --train.optimizer schedule_free_adamw, which averages by it.")
    rule = {
        "adamw": lambda: optax.adamw(rate, b1, b2, eps, weight_decay=decay),
        # With a given learning rate, updates are not scaled by the parameters' size.
        "adafactor": lambda: optax.adafactor(
            rate,
            multiply_by_parameter_scale=False,
            weight_decay_rate=None if decay == 0 else decay * peak_rate(config),
        ),
        "lion": lambda: optax.lion(rate, b1, b2, weight_decay=decay),
        "prodigy": lambda: prodigy(rate, (b1, b2), eps=eps, weight_decay=decay),
        "schedule_free_adamw": lambda: schedule_free_adamw(
            peak_rate(config), config.warmup_steps or None, b1, b2, eps, decay
        ),
    }[config.optimizer]()
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    return optax.chain(clip, rule)


def needs_averaging(opt_state: Any) -> bool:
    """Whether the trained parameters are not those to evaluate: schedule-free optimizers train at another point."""
    return isinstance(opt_state[1], ScheduleFreeState)  # of the chain (clip, rule)


def averaged_params(opt_state: Any, params: Params) -> Params:
    """Returns the parameters to evaluate."""
    return schedule_free_eval_params(opt_state[1], params) if needs_averaging(opt_state) else params
