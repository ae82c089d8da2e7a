"""Settings that cannot go together are refused before anything is read."""

from collections.abc import Mapping
from typing import get_args

from jaxbooth.config.caption_rules import check_captions
from jaxbooth.config.held_out import check_held_out
from jaxbooth.config.ineffective import changed_keys, ineffective_options
from jaxbooth.config.limits import MAX_ROWS_TRAINED, MAX_SAMPLED_IMAGES
from jaxbooth.config.loss import LossConfig
from jaxbooth.config.prior import ROW_METHODS
from jaxbooth.config.prior_rules import check_class, check_prior, warn_about_prior
from jaxbooth.config.rates import Group, default_learning_rate, peak_learning_rate, token_steps
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag, flatten
from jaxbooth.config.subjects import initializer_token
from jaxbooth.console.messages import warn
from jaxbooth.diffusion.schedule import NoiseSchedule
from jaxbooth.diffusion.weighting import FlowWeighting, Weighting
from jaxbooth.errors import UserError

# key -> why it does not go with --text.token-training textual-inversion
NOT_WITH_TEXTUAL_INVERSION = {
    "train.text_encoder": "trains more than the placeholder tokens",
    "lora.rank": "trains more than the placeholder tokens",
    "train.weight_decay": "does not act on placeholder tokens",
    "text.caption_dropout": "makes rows without the placeholder tokens, which would teach nothing",
}
RATE_KEYS: dict[Group, str] = {
    "denoiser": "train.learning_rate",
    "text": "text.learning_rate",
    "tokens": "text.token_learning_rate",
}
HIGH_RATE = 100  # times the default
MIN_PRODIGY_RATE = 0.1  # Prodigy finds the rate itself and multiplies it by the given one
# that entries of data.subjects have
SUBJECT_KEYS = ("instance_dir", "instance_prompt", "class_dir", "class_prompt", "validation_dir")


def check_config(config: Config) -> None:
    """Refuses settings that contradict each other, before anything is read.

    Raises:
        UserError: the message names the flags.
    """
    check_subjects(config)
    check_prior(config)
    check_held_out(config)
    check_rows(config)
    check_samples(config)
    for problem in ineffective_options(config):
        raise UserError(problem)
    check_training(config)
    check_lora(config)
    check_captions(config.text, config.subjects)
    warn_about_prior(config)
    warn_about_rates(config)
    for prompt in config.validation.prompts:
        if not prompt.strip():
            raise UserError("--validation.prompts holds an empty prompt; remove it.")


def check_lora(config: Config) -> None:
    """Refuses what a LoKr cannot be, and two rates for what has no matrices B."""
    if config.lora.b_rate_ratio != 1 and config.lora.kind not in ("lora", "dora"):
        raise UserError(
            f"--lora.b-rate-ratio {config.lora.b_rate_ratio:g} is for the matrices B of --lora.kind lora and dora, and "
            f"{config.lora.kind} has none; leave it out."
        )
    if config.lora.factor == 0:
        raise UserError("--lora.factor 0 makes no groups; set a number such as 8, or -1 for the nearest factors.")
    if config.lora.kind == "lokr" and config.mesh.tensor > 1:
        raise UserError(
            f"--mesh.tensor {config.mesh.tensor} splits the outputs of layers, which the factors of --lora.kind lokr "
            "span; use --mesh.fsdp, or another kind."
        )


def check_samples(config: Config) -> None:
    """Refuses more images of one validation or evaluation than fit into memory side by side."""
    validation, evaluation, subjects = config.validation, config.evaluation, len(config.subjects)
    images = (len(validation.prompts) or 2 * subjects + 1) * validation.images_per_prompt
    if images > MAX_SAMPLED_IMAGES:
        raise UserError(
            f"--validation.images-per-prompt {validation.images_per_prompt} makes {images} images at a time, "
            f"and {MAX_SAMPLED_IMAGES} is the most; lower it, or name fewer --validation.prompts."
        )
    images = subjects * (evaluation.num_prompts * evaluation.images_per_prompt + evaluation.num_class_images)
    if evaluation.every and images > MAX_SAMPLED_IMAGES:
        raise UserError(
            f"an evaluation of {images} images at a time is too large, and {MAX_SAMPLED_IMAGES} is the most; lower "
            "--evaluation.num-prompts, --evaluation.images-per-prompt or --evaluation.num-class-images."
        )


def warn_about_rates(config: Config) -> None:
    """Warns of a learning rate far above the default of what is trained; a zero is easily forgotten."""
    values = flatten(config)
    for group, key in RATE_KEYS.items():
        rate, default = values[key], default_learning_rate(config, group)
        if rate is not None and rate >= HIGH_RATE * default:
            warn(
                f"{flag(key)} {rate:g} is {rate / default:,.0f} times {default:g}, the default of what is trained "
                "here; such a rate can destroy a model within a few steps."
            )


def check_subjects(config: Config) -> None:
    """Refuses missing folders and prompts."""
    data = config.data
    if data.subjects:
        also_set = [f"data.{key}" for key in SUBJECT_KEYS if getattr(data, key) is not None]
        if also_set:
            raise UserError(f"{flag(also_set[0])} and data.subjects exclude each other; put it into the list.")
    elif data.instance_dir is None:
        raise UserError("--data.instance-dir is missing: the folder with the subject's images.")
    elif not (data.instance_prompt or "").strip():
        raise UserError(
            "--data.instance-prompt is missing; write one with a rare identifier, such as 'a photo of sks dog'."
        )
    for index, subject in enumerate(config.subjects):
        entry = f"data.subjects, entry {index + 1}"
        if not subject.instance_prompt.strip():
            raise UserError(f"{entry}: instance_prompt is empty; write one with an identifier of its own.")
        if subject.instance_prompt in [other.instance_prompt for other in config.subjects[:index]]:
            raise UserError(f"{entry}: {subject.instance_prompt!r} is another subject's prompt too; give each its own.")
        check_class(config, subject, f"{entry}: class_prompt" if data.subjects else "--data.class-prompt")


def check_rows(config: Config) -> None:
    """Refuses rows that do not divide into micro-batches, and more of them than can be counted."""
    train = config.train
    total = train.steps * config.rows
    if total > MAX_ROWS_TRAINED:
        raise UserError(
            f"--train.steps {train.steps} of {train.batch_size} + {config.prior_rows} rows are {total:,} rows, and a "
            f"run has {MAX_ROWS_TRAINED:,} at most; lower --train.steps or --train.batch-size."
        )
    method_rows = max(config.prior.rows_of(method, train.batch_size) for method in ROW_METHODS)
    for key, rows in (("--train.batch-size", train.batch_size), ("--prior.rows", method_rows)):
        if rows % train.gradient_accumulation_steps:
            raise UserError(
                f"{key} {rows} is not a multiple of --train.gradient-accumulation-steps "
                f"{train.gradient_accumulation_steps}."
            )


def check_training(config: Config) -> None:
    """Refuses parts of the training that cannot go together."""
    train, loss = config.train, config.loss
    check_quantization(config)
    if config.text.placeholder_tokens:
        check_tokens(config)
    if train.optimizer == "schedule_free_adamw":
        if config.text.placeholder_tokens or config.text.learning_rate:
            raise UserError("--train.optimizer schedule_free_adamw knows one learning rate; choose adamw.")
        if train.ema_decay is not None:
            raise UserError(
                "--train.optimizer schedule_free_adamw averages the weights itself; leave --train.ema-decay out."
            )
    if train.optimizer == "prodigy":
        check_prodigy(config)
    if loss.max_timestep is not None and loss.max_timestep < loss.min_timestep:
        raise UserError(f"--loss.max-timestep {loss.max_timestep} is below --loss.min-timestep {loss.min_timestep}.")


def check_quantization(config: Config) -> None:
    """Refuses to quantize what is trained."""
    kind = config.model_quantization
    if kind != "none" and not config.lora.rank and not config.text.is_textual_inversion:
        raise UserError(
            f"--model-quantization {kind} is for frozen weights, and all of them are trained here; set --lora.rank, "
            "such as 16, or leave it out."
        )


def check_tokens(config: Config) -> None:
    """Refuses what does not go with placeholder tokens."""
    train, text = config.train, config.text
    for word in text.placeholder_tokens:
        initializer_token(config.text, config.subjects, word)
    if text.token_training == "pivotal" and not 0 < token_steps(config) < train.steps:
        raise UserError(
            f"--text.token-share {text.token_share} of {train.steps} steps leaves none for the placeholder tokens or "
            "none for the rest; set another share, or --text.token-training joint."
        )
    if not text.is_textual_inversion:
        return
    changed = changed_keys(config)
    for key, reason in NOT_WITH_TEXTUAL_INVERSION.items():
        if key in changed:
            raise UserError(f"{flag(key)} {reason}; leave it out, or set --text.token-training joint.")
    if train.learning_rate is not None:
        raise UserError(
            "--train.learning-rate is the UNet's, which is frozen; leave it out (or None) and set "
            "--text.token-learning-rate."
        )
    if config.prior.weights:
        raise UserError(
            "--text.token-training textual-inversion keeps the model as it is, and class prompts hold no placeholder "
            f"token, so {' and '.join(config.prior.weights)} would teach nothing; set --prior.method none."
        )


def check_prodigy(config: Config) -> None:
    """Refuses learning rates with which Prodigy, which finds the rate itself, would hardly move, and ratios of them."""
    if config.lora.b_rate_ratio != 1:
        raise UserError(
            f"--lora.b-rate-ratio {config.lora.b_rate_ratio:g} asks for two learning rates, and --train.optimizer "
            "prodigy finds one for all parameters; leave the ratio out, or choose adamw."
        )
    rates = {
        "--train.learning-rate": 1.0 if config.text.is_textual_inversion else peak_learning_rate(config),
        "--text.learning-rate": config.text.learning_rate or 1.0,
        "--text.token-learning-rate": config.text.token_learning_rate or 1.0,
    }
    for key, rate in rates.items():
        if rate < MIN_PRODIGY_RATE:
            raise UserError(f"{key} {rate:g} only scales the rate that --train.optimizer prodigy finds; set it to 1.")


def check_schedule(config: Config, schedule: NoiseSchedule) -> None:
    """Refuses timesteps that the base model's schedule does not have, and what has no meaning or no bound on it.

    Raises:
        UserError: the message names the flag and what the schedule allows.
    """
    loss, last = config.loss, schedule.num_train_timesteps - 1
    for key in ("min_timestep", "max_timestep"):
        value = getattr(loss, key)
        if value is not None and value > last:
            raise UserError(f"{flag(f'loss.{key}')} {value} is beyond the schedule's last timestep, {last}.")
    weightings = set_weightings(config)
    if schedule.is_flow:
        check_flow_loss(loss, weightings)
    else:
        check_variance_preserving_loss(loss, weightings)
    highest = last if loss.max_timestep is None else loss.max_timestep
    infinite = unbounded_weightings(loss, schedule) if schedule.alphas[highest] == 0 else ()
    for key, weighting in weightings.items():
        if weighting in infinite:
            raise UserError(
                f"{flag(key)} {weighting} is infinite at this model's last timestep, which is pure "
                f"noise; set --loss.max-timestep {last - 1}, or choose min_snr."
            )


def set_weightings(config: Config) -> dict[str, Weighting]:
    """Returns key -> weighting of instance rows, and of prior rows where they have one of their own."""
    weightings = {"loss.weighting": config.loss.weighting}
    if config.prior.weighting is not None:
        weightings["prior.weighting"] = config.prior.weighting
    return weightings


def unbounded_weightings(loss: LossConfig, schedule: NoiseSchedule) -> tuple[str, ...]:
    """Returns the weightings that are infinite where alpha is 0."""
    if not schedule.is_flow:
        return ("vlb",)
    return get_args(FlowWeighting) if loss.prediction_space == "epsilon" else ()


def check_variance_preserving_loss(loss: LossConfig, weightings: Mapping[str, Weighting]) -> None:
    """Refuses what only rectified flow has."""
    if loss.prediction_space == "flow":
        raise UserError(
            "--loss.prediction-space flow is the velocity of flow models, and this model is not one; "
            "choose epsilon, x0 or v."
        )
    if loss.timestep_shift is not None:
        raise UserError(
            f"--loss.timestep-shift {loss.timestep_shift} shifts the noise of flow models, and this model is not one; "
            "--loss.timestep-sampling logit_normal with a --loss.timestep-mean has a similar effect."
        )
    for key, weighting in weightings.items():
        if weighting in get_args(FlowWeighting):
            raise UserError(
                f"{flag(key)} {weighting} is a weight of flow models, and this model is not one; "
                "choose uniform or min_snr."
            )


def check_flow_loss(loss: LossConfig, weightings: Mapping[str, Weighting]) -> None:
    """Refuses what rectified flow does not have."""
    if loss.prediction_space == "v":
        raise UserError(
            "--loss.prediction-space v belongs to variance-preserving schedules, and this is a flow model; "
            "choose flow, x0 or epsilon."
        )
    for key, weighting in weightings.items():
        if weighting == "vlb":
            raise UserError(
                f"{flag(key)} vlb is made of the betas of a variance-preserving schedule, and this is a flow "
                "model; choose uniform or min_snr."
            )
