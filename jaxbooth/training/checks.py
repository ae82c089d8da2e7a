"""Settings that contradict each other, refused before anything is read: no option is accepted and ignored."""

from collections.abc import Iterator

from jaxbooth.config import Config, flag, flatten
from jaxbooth.errors import UserError
from jaxbooth.sections import Subject

# (key that has no effect, what it needs, in words)
NEEDS = (
    (
        "train.text_encoder",
        "text.learning_rate",
        "is the text encoder's rate, and it is frozen; set --train.text-encoder",
    ),
    ("lora.rank", "lora.alpha", "needs --lora.rank"),
    ("lora.rank", "lora.rslora", "needs --lora.rank"),
    ("lora.rank", "lora.dora", "needs --lora.rank"),
    ("lora.rank", "lora.targets", "needs --lora.rank"),
    ("lora.rank", "lora.init", "needs --lora.rank, the rank of the file or a larger one"),
    ("text.new_tokens", "text.vectors_per_token", "needs --text.new-tokens"),
    ("text.new_tokens", "text.initializer", "needs --text.new-tokens"),
    ("text.new_tokens", "text.token_learning_rate", "needs --text.new-tokens"),
    ("text.new_tokens", "text.token_phase", "needs --text.new-tokens"),
)
# (key, the value of another key that it needs)
ONLY_WITH = (
    ("text.token_share", "text.token_phase", "first"),
    ("loss.huber_c", "loss.kind", "huber"),
    ("loss.timestep_mean", "loss.timesteps", "logit_normal"),
    ("loss.timestep_std", "loss.timesteps", "logit_normal"),
    ("data.random_crops", "data.crop", "random"),
)
PRIOR_KEYS = ("loss.prior_weighting", "loss.prior_target")
MADE_BY_SUBJECTS = ("instance_dir", "instance_prompt", "class_dir", "class_prompt")
CLASS_FLAG = "--data.class-prompt"


def check_config(config: Config) -> None:
    """Refuses settings that contradict each other, before anything is read.

    Raises:
        UserError: the message names the flags.
    """
    check_subjects(config)
    check_rows(config)
    for problem in idle_options(config):
        raise UserError(problem)
    check_training(config)
    for prompt in config.validation.prompts:
        if not prompt.strip():
            raise UserError("--validation.prompts holds an empty prompt; remove it.")


def idle_options(config: Config) -> Iterator[str]:
    """Yields a sentence for every option that was set and would do nothing."""
    values, defaults = flatten(config), flatten(Config())

    def is_set(key: str) -> bool:
        return values[key] != defaults[key]

    for needed, key, why in NEEDS:
        if is_set(key) and not values[needed]:
            yield f"{flag(key)} {why}."
    for key, other, wanted in ONLY_WITH:
        if is_set(key) and values[other] != wanted:
            yield f"{flag(key)} only acts with {flag(other)} {wanted}."
    if is_set("loss.snr_gamma") and "min_snr" not in (config.loss.weighting, config.loss.prior_weighting):
        yield "--loss.snr-gamma only acts with --loss.weighting min_snr."
    for key in PRIOR_KEYS:
        if is_set(key) and not config.prior_rows:
            yield f"{flag(key)} is about prior rows, and this run has none."


def check_subjects(config: Config) -> None:
    """Refuses missing folders and prompts."""
    data = config.data
    if data.subjects:
        given = [key for key in MADE_BY_SUBJECTS if getattr(data, key) is not None]
        if given:
            raise UserError(f"{flag(f'data.{given[0]}')} and data.subjects exclude each other; put it into the list.")
    elif data.instance_dir is None:
        raise UserError("--data.instance-dir is missing: the folder with the subject's pictures.")
    elif not (data.instance_prompt or "").strip():
        raise UserError(
            "--data.instance-prompt is missing; write one with a rare identifier, such as 'a photo of sks dog'."
        )
    for index, subject in enumerate(config.subjects):
        check_class(config, subject, f"data.subjects, entry {index + 1}: class_prompt" if data.subjects else CLASS_FLAG)


def check_class(config: Config, subject: Subject, key: str) -> None:
    """Refuses a class that prior preservation cannot use; `key` is where its prompt was set."""
    if not config.prior_rows:
        return
    prompt, weight = subject.class_prompt or "", config.train.prior_weight
    if not prompt.strip():
        raise UserError(
            f"{key} is missing: prior preservation is on (--train.prior-weight {weight}). "
            "Name the class, such as 'a photo of dog', or set --train.prior-weight 0."
        )
    if subject.class_dir and subject.class_dir.resolve() == subject.instance_dir.resolve():
        raise UserError(f"--data.instance-dir and --data.class-dir are both {subject.class_dir}; they must differ.")
    for word in config.text.new_tokens:
        if word in prompt:
            raise UserError(f"{key} holds the new word {word}, which the frozen model does not know; leave it out.")


def check_rows(config: Config) -> None:
    """Refuses rows that do not divide into micro-batches."""
    train = config.train
    for key, rows in (("batch-size", train.batch_size), ("prior-batch-size", config.prior_rows)):
        if rows % train.accumulation:
            raise UserError(f"--train.{key} {rows} is not a multiple of --train.accumulation {train.accumulation}.")


def check_training(config: Config) -> None:
    """Refuses parts of the training that cannot go together."""
    train, text, loss = config.train, config.text, config.loss
    alone = bool(text.new_tokens) and text.token_phase == "alone"
    for key, given in (("--train.text-encoder", train.text_encoder), ("--lora.rank", config.lora.rank)):
        if alone and given:
            raise UserError(f"{key} trains more than the new words; leave it out, or set --text.token-phase together.")
    if alone and train.learning_rate is not None:
        raise UserError("--train.learning-rate is the UNet's, which is frozen; set --text.token-learning-rate.")
    if train.optimizer == "schedule_free_adamw" and (text.new_tokens or text.learning_rate):
        raise UserError("--train.optimizer schedule_free_adamw knows one learning rate; choose adamw.")
    if loss.max_timestep is not None and loss.max_timestep < loss.min_timestep:
        raise UserError(f"--loss.max-timestep {loss.max_timestep} is below --loss.min-timestep {loss.min_timestep}.")


def check_timesteps(config: Config, total: int) -> None:
    """Refuses timesteps that the base model's schedule of `total` steps does not have.

    Raises:
        UserError: the message names the flag and the last timestep.
    """
    for key in ("min_timestep", "max_timestep"):
        value = getattr(config.loss, key)
        if value is not None and value >= total:
            raise UserError(f"{flag(f'loss.{key}')} {value} is beyond the schedule's last timestep, {total - 1}.")
