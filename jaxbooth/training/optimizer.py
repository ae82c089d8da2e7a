"""Optimizers and learning-rate schedules, all optax's."""

from typing import Any

import optax
from optax.contrib import ScheduleFreeState, prodigy, schedule_free_adamw, schedule_free_eval_params

from jaxbooth.config import TrainConfig
from jaxbooth.errors import UserError
from jaxbooth.params import Params

DEFAULT_B2 = {"lion": 0.99}


def learning_rate_schedule(config: TrainConfig) -> optax.Schedule:
    """Returns step -> learning rate: linear warmup, then constant, or down to 0 at the last step.

    Raises:
        UserError: the warmup does not end before the run.
    """
    peak, rest = config.learning_rate, config.steps - config.warmup_steps
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
    rule = {
        "adamw": lambda: optax.adamw(rate, b1, b2, eps, weight_decay=decay),
        # With a given learning rate, updates are not scaled by the parameters' size.
        "adafactor": lambda: optax.adafactor(
            rate,
            multiply_by_parameter_scale=False,
            weight_decay_rate=None if decay == 0 else decay * config.learning_rate,
        ),
        "lion": lambda: optax.lion(rate, b1, b2, weight_decay=decay),
        "prodigy": lambda: prodigy(rate, (b1, b2), eps=eps, weight_decay=decay),
        "schedule_free_adamw": lambda: schedule_free_adamw(
            config.learning_rate, config.warmup_steps or None, b1, b2, eps, decay
        ),
    }[config.optimizer]()
    clip = optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    return optax.chain(clip, rule)


def averaged_params(opt_state: Any, params: Params) -> Params:
    """Returns the parameters to evaluate: schedule-free optimizers train at one point and are good at another."""
    rule_state = opt_state[1]  # of the chain: (clip, rule)
    if isinstance(rule_state, ScheduleFreeState):
        return schedule_free_eval_params(rule_state, params)
    return params
