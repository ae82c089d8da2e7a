"""Optimizers and learning-rate schedules, all optax's.

Three groups of parameters may have a rate of their own: the denoiser, the text encoders and the placeholder tokens.
"""

from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any

import jax
import optax
from jaxtyping import Float
from optax.contrib import ScheduleFreeState, prodigy, schedule_free, schedule_free_eval_params

from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.config.rates import Group, LearningRates
from jaxbooth.config.schema import TrainConfig
from jaxbooth.errors import UserError
from jaxbooth.models.low_rank import LORA_B
from jaxbooth.params import AnyArray, Params

DEFAULT_B2 = {"lion": 0.99}
# Schedule-free AdamW weighs its average by the rate; its authors' warmup starts at 1 / steps. Prodigy divides by it.
WARMUP_FROM_FIRST_STEP = ("schedule_free_adamw", "prodigy")

GROUPS: tuple[Group, ...] = ("denoiser", "text", "tokens")


def group_of(name: str) -> Group:
    """Returns the group of a trained parameter."""
    if name.endswith(f".{PLACEHOLDER_EMBEDDING}"):
        return "tokens"
    return "text" if name.startswith("text_encoder") else "denoiser"


def group_steps(train: TrainConfig, rates: LearningRates, group: Group) -> int:
    """Returns how many of the run's steps train a group."""
    if not rates.token_steps:
        return train.steps
    return rates.token_steps if group == "tokens" else train.steps - rates.token_steps


def learning_rate_schedule(train: TrainConfig, rates: LearningRates, group: Group = "denoiser") -> optax.Schedule:
    """Returns step of the group -> learning rate: linear warmup, then constant, or down to 0 at its last step.

    The warmup starts at 0, and that of `WARMUP_FROM_FIRST_STEP` at 1 / warmup steps of the peak.

    Raises:
        UserError: the warmup does not end before the run.
    """
    steps, peak = group_steps(train, rates, group), rates.peak(group)
    rest = steps - train.warmup_steps
    if rest <= 0:
        raise UserError(f"--train.warmup-steps {train.warmup_steps} leaves nothing of the {steps} steps.")
    match train.lr_scheduler:
        case "constant":
            after = optax.constant_schedule(peak)
        case "linear":
            after = optax.linear_schedule(peak, 0.0, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest)
    if not train.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, peak, train.warmup_steps)
    if train.optimizer in WARMUP_FROM_FIRST_STEP:
        warmup = optax.linear_schedule(peak / train.warmup_steps, peak, train.warmup_steps - 1)
    return optax.join_schedules([warmup, after], [train.warmup_steps])


def reported_learning_rate(train: TrainConfig, rates: LearningRates) -> optax.Schedule:
    """Returns step of the run -> the denoiser's learning rate, or the placeholder tokens' where they train alone."""
    if rates.tokens_only:
        return learning_rate_schedule(train, rates, "tokens")
    denoiser = learning_rate_schedule(train, rates)
    if not rates.token_steps:
        return denoiser
    return optax.join_schedules([learning_rate_schedule(train, rates, "tokens"), denoiser], [rates.token_steps])


def make_optimizer(
    train: TrainConfig, rates: LearningRates, no_gradient: Collection[str] = ()
) -> optax.GradientTransformation:
    """Returns clipping by the global norm followed by the chosen update rule, for each group with its own rate.

    Args:
        no_gradient: trained parameters that nothing reads. They stay as they are, as in PyTorch; decay would move them.

    Raises:
        UserError: the schedule does not go with the optimizer.
    """
    if train.optimizer == "schedule_free_adamw" and train.lr_scheduler != "constant":
        raise UserError("--train.lr-scheduler must be constant with --train.optimizer schedule_free_adamw.")
    if train.optimizer == "schedule_free_adamw" and train.b1 == 0:
        raise UserError("--train.b1 must not be 0 with --train.optimizer schedule_free_adamw, which averages by it.")
    rate_of = {group: group_rate(train, rates, group) for group in rate_groups(rates)}
    return assemble(train, rate_of, no_gradient, rates.token_steps, rates.b_ratio)


def rate_groups(rates: LearningRates) -> tuple[Group, ...]:
    """Returns the groups of parameters that have a rate of their own; one group stands for all parameters."""
    return GROUPS if rates.has_groups else GROUPS[:1]


def make_slot_optimizer(
    train: TrainConfig,
    rates: Mapping[Group, Float[AnyArray, ""]],
    no_gradient: Collection[str] = (),
    b_ratio: float = 1.0,
) -> optax.GradientTransformation:
    """Returns the optimizer of `make_optimizer` for one step at given rates; its state is the same.

    Args:
        rates: of one group, or of all where they differ.
        b_ratio: see `LearningRates`.
    """
    rate_of: Mapping[Group, Any] = rates
    if not has_constant_rate(train):
        rate_of = {group: lambda _, rate=rate: rate for group, rate in rates.items()}
    return assemble(train, rate_of, no_gradient, b_ratio=b_ratio)


def has_constant_rate(train: TrainConfig) -> bool:
    """Whether the optimizer is given a number and no schedule."""
    return train.optimizer == "schedule_free_adamw" and not train.warmup_steps


def group_rate(train: TrainConfig, rates: LearningRates, group: Group) -> Any:
    """Returns the learning rate that the optimizer is given, a number or a schedule."""
    return rates.peak(group) if has_constant_rate(train) else learning_rate_schedule(train, rates, group)


def assemble(
    train: TrainConfig,
    rate_of: Mapping[Group, Any],
    no_gradient: Collection[str],
    token_steps: int = 0,
    b_ratio: float = 1.0,
) -> optax.GradientTransformation:
    """Joins clipping and the update rules of groups of parameters; one group stands for all parameters.

    Args:
        rate_of: what optax takes as each group's learning rate.
        token_steps, b_ratio: see `LearningRates`.
    """
    clip = optax.clip_by_global_norm(train.max_grad_norm) if train.max_grad_norm else optax.identity()
    rules: dict[Hashable, Any] = {
        group: update_rule(train, rate, group, no_gradient, b_ratio) for group, rate in rate_of.items()
    }
    if len(rules) == 1:
        return optax.chain(clip, *rules.values())
    if not token_steps:
        return optax.chain(clip, optax.partition(rules, group_labels))
    # A resting group's gradients must not count for the norm, and its moments and schedule must wait for its turn.
    gates: dict[Hashable, Any] = {group: active_in_phase(optax.identity(), group, token_steps) for group in GROUPS}
    rules = {group: active_in_phase(rules[group], group, token_steps) for group in GROUPS}
    return optax.chain(optax.partition(gates, group_labels), clip, optax.partition(rules, group_labels))


def group_labels(params: Mapping[str, Any]) -> dict[str, Group]:
    """Returns every parameter's group."""
    return {name: group_of(name) for name in params}


def active_in_phase(rule: optax.GradientTransformation, group: Group, token_steps: int) -> optax.GradientTransformation:
    """Runs a rule in its group's phase only: placeholder tokens in the first `token_steps`, all else after them."""

    def active(step: Any, **_: Any) -> Any:
        return step < token_steps if group == "tokens" else step >= token_steps

    return optax.transforms.conditionally_mask(rule, active)


def update_rule(
    train: TrainConfig, rate: Any, group: Group, no_gradient: Collection[str] = (), b_ratio: float = 1.0
) -> optax.GradientTransformation:
    """Returns the chosen rule at a group's rate, a number or a schedule, and at `b_ratio` times it for matrices B."""
    # Embeddings have no resting point at zero, so decay would only shrink them.
    decay = 0.0 if group == "tokens" else train.weight_decay
    mask = decay_mask(no_gradient)
    b1, eps = train.b1, train.eps
    b2 = DEFAULT_B2.get(train.optimizer, 0.999) if train.b2 is None else train.b2
    match train.optimizer:
        case "adamw":
            rule = with_mu_dtype(train.mu_dtype, optax.adamw(rate, b1, b2, eps, weight_decay=decay, mask=mask))
        case "adafactor":
            rule = adafactor(rate, decay, mask)
        case "lion":
            rule = with_mu_dtype(train.mu_dtype, optax.lion(rate, b1, b2, weight_decay=decay, mask=mask))
        case "prodigy":
            rule = prodigy(rate, (b1, b2), eps=eps, weight_decay=decay)
            rule = optax.chain(rule, optax.masked(optax.set_to_zero(), inverse(mask))) if mask else rule
        case "schedule_free_adamw":
            rms = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
            direction = optax.chain(rms, optax.add_decayed_weights(decay, mask))
            return schedule_free_optimizer(direction, rate, b1, b_ratio)
    return with_b_ratio(b_ratio, rule)


Mask = Callable[[Mapping[str, Any]], dict[str, bool]]


def decay_mask(no_gradient: Collection[str]) -> Mask | None:
    """Returns parameters -> which of them decay, or None if all do."""
    return (lambda params: {name: name not in no_gradient for name in params}) if no_gradient else None


def inverse(mask: Mask) -> Mask:
    """Returns parameters -> those that a mask leaves out."""
    return lambda params: {name: not kept for name, kept in mask(params).items()}


def adafactor(rate: optax.Schedule, decay: float, mask: Mask | None) -> optax.GradientTransformation:
    """Returns Adafactor (Shazeer and Stern 2018) whose updates are not scaled by the parameters' size.

    The decay follows the rate, as in PyTorch; that of `optax.adafactor` stays whatever the schedule says.
    """
    decayed = [optax.add_decayed_weights(decay, mask)] if decay else []
    return optax.chain(
        optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), *decayed, optax.scale_by_learning_rate(rate)
    )


def schedule_free_optimizer(
    direction: optax.GradientTransformation, rate: Any, b1: float, b_ratio: float
) -> optax.GradientTransformation:
    """Returns the schedule-free method (Defazio et al. 2024, arXiv 2405.15682) on an update direction.

    Its own count of steps starts at 1 (`optax.contrib.schedule_free`), and that of the rate at 0. The average weighs
    steps by their rate over the sum of all rates, which a ratio leaves as it is.
    """

    def weight_rate(count: Any) -> Any:
        return rate(count - 1) if callable(rate) else rate

    base = with_b_ratio(b_ratio, optax.chain(direction, optax.scale_by_learning_rate(rate)))
    return schedule_free(base, weight_rate if callable(rate) else rate, b1)


def with_b_ratio(ratio: float, rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns a rule that trains the matrices B of LoRAs at `ratio` times its rate: LoRA+ (Hayou et al. 2024).

    arXiv 2402.12354, section 4. The updates of the rule are to be its rate times what does not depend on the rate.
    """

    def scaled(path: Any, change: Any) -> Any:
        return ratio * change if path[0].key.endswith(f".{LORA_B}") else change

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = rule.update(updates, state, params)
        return jax.tree.map_with_path(scaled, updates), state

    return rule if ratio == 1 else optax.GradientTransformation(rule.init, update)


def with_mu_dtype(dtype: str, rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns a rule whose first moment is kept in `dtype` and computed in float32.

    optax's own `mu_dtype` also rounds the decay by which the moment is multiplied: 0.99 is 0.988 in bfloat16, with
    which the average of a constant gradient is 0.85 of it.
    """
    if dtype == "float32":
        return rule

    def in_dtype(state: Any, dtype: Any) -> Any:
        return optax.tree.set(state, mu=optax.tree.cast(optax.tree.get(state, "mu"), dtype))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = rule.update(updates, in_dtype(state, "float32"), params)
        return updates, in_dtype(state, dtype)

    return optax.GradientTransformation(lambda params: in_dtype(rule.init(params), dtype), update)


def needs_averaging(opt_state: Any) -> bool:
    """Whether the trained parameters are not those to evaluate: schedule-free optimizers train at another point."""
    return isinstance(opt_state[1], ScheduleFreeState)  # of the chain (clip, rule)


def averaged_params(opt_state: Any, params: Params) -> Params:
    """Returns the parameters to evaluate."""
    return schedule_free_eval_params(opt_state[1], params) if needs_averaging(opt_state) else params
