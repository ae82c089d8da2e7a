"""Optimizers and learning-rate schedules, all optax's.

Three groups may have a rate of their own: the UNet, the text encoders and learned embeddings.
"""

from collections.abc import Hashable, Mapping
from typing import Any, Literal

import optax
from optax.contrib import ScheduleFreeState, prodigy, schedule_free_adamw, schedule_free_eval_params

from jaxbooth.config import Config
from jaxbooth.errors import UserError
from jaxbooth.params import Params
from jaxbooth.sections import TrainConfig
from jaxbooth.text import NEW_TOKENS

DEFAULT_B2 = {"lion": 0.99}
DEFAULT_RATE = {"prodigy": 1.0}

Group = Literal["unet", "text", "tokens"]
GROUPS: tuple[Group, ...] = ("unet", "text", "tokens")


def group_of(name: str) -> Group:
    """Returns the group of a trained parameter."""
    if name.endswith(f".{NEW_TOKENS}"):
        return "tokens"
    return "unet" if name.startswith("unet.") else "text"


def default_rate(config: Config, group: Group = "unet") -> float:
    """Returns the learning rate of a group where none is set: by the optimizer, and by what is trained."""
    rates = config.default_rates
    trained = rates.tokens if group == "tokens" else rates.lora if config.lora.rank else rates.full
    return DEFAULT_RATE.get(config.train.optimizer, trained)


def peak_rate(config: Config, group: Group = "unet") -> float:
    """Returns a group's learning rate: as set, or the default; the text encoders' is the UNet's unless it is set."""
    if group == "tokens":
        return config.text.token_learning_rate or default_rate(config, "tokens")
    unet = config.train.learning_rate or default_rate(config)
    return (config.text.learning_rate or unet) if group == "text" else unet


def token_steps(config: Config) -> int:
    """Returns the steps at the start that belong to the learned embeddings alone."""
    text = config.text
    return round(config.train.steps * text.token_share) if text.new_tokens and text.token_phase == "first" else 0


def learning_rate_schedule(config: Config, group: Group = "unet") -> optax.Schedule:
    """Returns step of the group -> learning rate: linear warmup, then constant, or down to 0 at its last step.

    Raises:
        UserError: the warmup does not end before the run.
    """
    train, first = config.train, token_steps(config)
    steps = train.steps if not first else first if group == "tokens" else train.steps - first
    peak, rest = peak_rate(config, group), steps - train.warmup_steps
    if rest <= 0:
        raise UserError(f"--train.warmup-steps {train.warmup_steps} leaves nothing of the {steps} steps.")
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[train.schedule]
    if not train.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, peak, train.warmup_steps)
    return optax.join_schedules([warmup, after], [train.warmup_steps])


def reported_rate(config: Config) -> optax.Schedule:
    """Returns step of the run -> the UNet's learning rate, or the embeddings' where they are trained alone."""
    if config.text.new_tokens and config.text.token_phase == "alone":
        return learning_rate_schedule(config, "tokens")
    unet, first = learning_rate_schedule(config), token_steps(config)
    return optax.join_schedules([learning_rate_schedule(config, "tokens"), unet], [first]) if first else unet


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns clipping by the global norm followed by the chosen update rule, for each group with its own rate.

    Raises:
        UserError: the schedule does not go with the optimizer.
    """
    train = config.train
    if train.optimizer == "schedule_free_adamw" and train.schedule != "constant":
        raise UserError("--train.schedule must be constant with --train.optimizer schedule_free_adamw.")
    if train.optimizer == "schedule_free_adamw" and train.b1 == 0:
        raise UserError("--train.b1 must not be 0 with --train.optimizer schedule_free_adamw, which averages by it.")
    clip = optax.clip_by_global_norm(train.max_grad_norm) if train.max_grad_norm else optax.identity()
    if not has_groups(config):
        return optax.chain(clip, update_rule(config, "unet"))
    rules: dict[Hashable, Any] = {group: update_rule(config, group) for group in GROUPS}
    first = token_steps(config)
    if not first:
        return optax.chain(clip, optax.partition(rules, labels_of))
    # A resting group's gradients must not count for the norm, and its moments and schedule must wait for its turn.
    gates: dict[Hashable, Any] = {group: only(optax.identity(), group, first) for group in GROUPS}
    rules = {group: only(rules[group], group, first) for group in GROUPS}
    return optax.chain(optax.partition(gates, labels_of), clip, optax.partition(rules, labels_of))


def has_groups(config: Config) -> bool:
    """Whether not everything is trained at one rate."""
    return config.text.learning_rate is not None or bool(config.text.new_tokens)


def labels_of(params: Mapping[str, Any]) -> dict[str, Group]:
    """Returns every parameter's group."""
    return {name: group_of(name) for name in params}


def only(rule: optax.GradientTransformation, group: Group, first: int) -> optax.GradientTransformation:
    """Runs a rule in its group's phase only: embeddings up to step `first`, everything else after it."""

    def active(step: Any, **_: Any) -> Any:
        return step < first if group == "tokens" else step >= first

    return optax.transforms.conditionally_mask(rule, active)


def update_rule(config: Config, group: Group) -> optax.GradientTransformation:
    """Returns the chosen rule at a group's rate."""
    train: TrainConfig = config.train
    # Embeddings have no resting point at zero, so decay would only shrink them.
    decay = 0.0 if group == "tokens" else train.weight_decay
    rate, peak = learning_rate_schedule(config, group), peak_rate(config, group)
    b1, eps, mu_dtype = train.b1, train.eps, train.mu_dtype
    b2 = DEFAULT_B2.get(train.optimizer, 0.999) if train.b2 is None else train.b2
    return {
        "adamw": lambda: optax.adamw(rate, b1, b2, eps, weight_decay=decay, mu_dtype=mu_dtype),
        # With a given learning rate, updates are not scaled by the parameters' size.
        "adafactor": lambda: optax.adafactor(
            rate, multiply_by_parameter_scale=False, weight_decay_rate=None if decay == 0 else decay * peak
        ),
        "lion": lambda: optax.lion(rate, b1, b2, mu_dtype, decay),
        "prodigy": lambda: prodigy(rate, (b1, b2), eps=eps, weight_decay=decay),
        "schedule_free_adamw": lambda: schedule_free_adamw(peak, train.warmup_steps or None, b1, b2, eps, decay),
    }[train.optimizer]()


def needs_averaging(opt_state: Any) -> bool:
    """Whether the trained parameters are not those to evaluate: schedule-free optimizers train at another point."""
    return isinstance(opt_state[1], ScheduleFreeState)  # of the chain (clip, rule)


def averaged_params(opt_state: Any, params: Params) -> Params:
    """Returns the parameters to evaluate."""
    return schedule_free_eval_params(opt_state[1], params) if needs_averaging(opt_state) else params
