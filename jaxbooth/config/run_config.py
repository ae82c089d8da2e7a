"""The configuration of a run: a frozen schema, YAML files that hold what differs from it, and dotted flags on top."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError

from jaxbooth.assets import shipped_configs
from jaxbooth.config.limits import Regex, Seed
from jaxbooth.config.schema import (
    DataConfig,
    DefaultRates,
    DistributedConfig,
    EvaluationConfig,
    LoraConfig,
    LossConfig,
    MeshConfig,
    PriorConfig,
    SchedulerPrediction,
    Section,
    Subject,
    TextConfig,
    TrainConfig,
    ValidationConfig,
)
from jaxbooth.config.suggestions import TRAINERS, as_keys, suggest
from jaxbooth.errors import UserError, short_repr
from jaxbooth.storage.remote import as_path
from jaxbooth.storage.yaml import read_yaml
from jaxbooth.weights.resolve import Source

EXPECTATIONS = {  # pydantic's names of errors that speak of Python -> what is needed
    "int_parsing": "a whole number is needed",
    "int_type": "a whole number is needed",
    "int_from_float": "a whole number is needed",
    "float_parsing": "a number is needed",
    "float_type": "a number is needed",
    "bool_parsing": "true or false is needed",
    "bool_type": "true or false is needed",
    "string_type": "text is needed",
    "model_type": "a group of settings is needed",
}


class Config(Section):
    """Everything that decides a run."""

    model: str = "demo"
    """Base model: a diffusers folder, a single .safetensors file, a Hub id, or "demo" (the embedded tiny-emoji)."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    variant: str | None = None
    """Weight files to take where a model has several, such as fp16."""
    vae: str | None = None
    """Another VAE: a folder, a single file or a Hub id."""
    prediction_type: SchedulerPrediction | None = None
    """What the network predicts, where the checkpoint does not say it right."""
    allow_pickle: bool = False
    """Also read .ckpt and .bin files, with PyTorch's weights-only loader."""
    offline: bool = False
    """Never ask the Hub; use what was fetched before."""
    run_dir: Annotated[str, BeforeValidator(str)] = "runs/dreambooth"
    """Folder of this run, also gs://BUCKET/FOLDER; running the same command again continues it."""
    seed: Seed = 0
    """Decides noise, timesteps, order and images."""
    force: bool = False
    """Train even where the estimate says that the devices have too little memory."""
    export: bool = True
    """Write RUN/export, in the smallest format that holds the result, when the run is complete."""
    data: DataConfig = DataConfig()
    prior: PriorConfig = PriorConfig()
    train: TrainConfig = TrainConfig()
    default_lora_targets: Regex = "attention"
    """Layers that suit the base model for a LoRA, where --lora.targets is not set."""
    default_rates: DefaultRates = DefaultRates()
    loss: LossConfig = LossConfig()
    lora: LoraConfig = LoraConfig()
    text: TextConfig = TextConfig()
    mesh: MeshConfig = MeshConfig()
    validation: ValidationConfig = ValidationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    distributed: DistributedConfig = DistributedConfig()

    @property
    def source(self) -> Source:
        """The base model as it is looked for."""
        return Source(
            self.model, self.revision, self.variant, self.vae, self.allow_pickle, self.offline, self.prediction_type
        )

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The subjects of the run: the list, or the one that the data section describes."""
        data = self.data
        if data.subjects:
            return data.subjects
        if data.instance_dir is None:  # a run that starts checks that first
            raise UserError("data.instance_dir is not set; where it is missing in a run's config.yaml, put it back.")
        return (
            Subject(
                instance_dir=data.instance_dir,
                instance_prompt=data.instance_prompt or "",
                class_prompt=data.class_prompt,
                class_dir=data.class_dir,
            ),
        )

    @property
    def lora_targets(self) -> str:
        """Layers that a LoRA adapts, as `models.lora.target_layers` takes them: as set, or the base model's default."""
        return self.lora.targets or self.default_lora_targets

    @property
    def trains_text(self) -> bool:
        """Whether captions must be encoded in the step."""
        return self.train.text_encoder or bool(self.text.placeholder_tokens)

    @property
    def resolution(self) -> int:
        """Side of the training images in pixels; a run fills in its base model's where none is set."""
        if self.data.resolution is None:  # a run that starts fills it in
            raise UserError("data.resolution is not set; where it is missing in a run's config.yaml, put it back.")
        return self.data.resolution

    @property
    def prior_rows(self) -> int:
        """Prior rows of a step."""
        if self.train.prior_weight == 0:
            return 0
        return self.train.batch_size if self.train.prior_batch_size is None else self.train.prior_batch_size


def fill_resolution(config: Config, native: int) -> Config:
    """Takes the base model's own resolution, in pixels, where none is set."""
    data = config.data.model_copy(update={"resolution": config.data.resolution or native})
    return config.model_copy(update={"data": data})


# What may change when a run is continued: none of it alters a step that is already done.
FREE_TO_CHANGE = {
    "run_dir", "force", "export", "offline", "allow_pickle", "train.steps", "train.steps_per_dispatch",
    "train.checkpoint_every", "train.max_checkpoints", "train.gradient_accumulation_steps", "train.remat",
    "prior.batch_size",
}  # fmt: skip
FREE_SECTIONS = ("mesh", "validation", "evaluation")
EMBEDDED_SUBJECT = Path("demo")  # as `data.instance_dir`


def flatten(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Returns dotted key -> value, in schema order."""
    flat: dict[str, Any] = {}
    for key in type(section).model_fields:
        value = getattr(section, key)
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, BaseModel) else {prefix + key: value}
    return flat


def flag(key: str) -> str:
    """Returns the command-line flag of a dotted key."""
    return "--" + key.replace("_", "-")


def to_user_error(error: ValidationError, source: str | None) -> UserError:
    """Turns pydantic's report, on a whole configuration or on one section of it, into one sentence.

    Args:
        source: the file that holds the values, or None where they are flags.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    sections = {type(value).__name__: [key] for key, value in Config() if isinstance(value, Section)}
    key = ".".join(str(part) for part in [*sections.get(error.title, []), *first["loc"]])
    if first["type"] == "extra_forbidden":
        known = list(flatten(Config()))
        groups = dict.fromkeys(other.rpartition(".")[0] for other in known if "." in other)
        hint = as_keys(suggest(key, [*known, *groups], TRAINERS), known)
        return UserError(
            f"{source}: unknown key {short_repr(key)}; {hint or '`jaxbooth train --help` lists the keys.'}"
        )
    value, problem = short_repr(first["input"]), EXPECTATIONS.get(first["type"], first["msg"].lower())
    if source is None:
        return UserError(f"{flag(key)} {value} is not valid: {problem}.")
    return UserError(f"{source}: {key} = {value} is not valid: {problem}.")


def load_config(source: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Reads a configuration: a YAML file, the name of a shipped one (`demo`, `sd15`), or None for the defaults.

    Args:
        overrides: values in place of the file's, as flags have them; see `with_overrides`.

    Raises:
        UserError: no such file, not YAML, an unknown key or a value out of range.
    """
    config = read_config_file(source)
    return with_overrides(config, overrides) if overrides else config


def with_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Returns a configuration with other values: `{"train.steps": 10}` or `{"train": {"steps": 10}}`.

    What the configuration says of its own model or embedded subject is dropped; see `reset_dependent_keys`.

    Raises:
        UserError: an unknown key or a value out of range.
    """
    given = flatten_mapping(overrides)
    values = reset_dependent_keys(config, given).model_dump()
    for key, value in given.items():
        *sections, leaf = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(f"unknown key {key!r}: {section} is a value and has no keys.")
        target[leaf] = value
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise to_user_error(error, "the configuration") from None


def flatten_mapping(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns dotted key -> value of mappings inside of each other; dashes may stand for underscores, as in flags."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + str(key).replace("-", "_")
        flat |= flatten_mapping(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def read_config_file(source: str | Path | None) -> Config:
    """Reads what `load_config` is given."""
    if source is None:
        return Config()
    path = as_path(source) if "://" in str(source) else Path(source)
    if not path.is_file():
        shipped = {p.stem: p for p in shipped_configs().glob("*.yaml")}
        if str(source) not in shipped and not path.exists():
            raise UserError(
                f"{source} is neither a file nor one of the shipped configurations ({', '.join(sorted(shipped))})."
            )
        path = shipped.get(str(source), path)
    try:
        return Config.model_validate(read_yaml(path))
    except ValidationError as error:
        raise to_user_error(error, str(path)) from None


def reset_dependent_keys(config: Config, given: Collection[str]) -> Config:
    """Returns a configuration without what it says of its own model or embedded subject, where another one is given.

    How a configuration's model is looked for says nothing about another model, nor do prompts of the embedded subject
    about a user's own.

    Args:
        given: dotted keys that are set on top of the configuration.
    """
    if "model" in given:
        config = config.model_copy(update=dict.fromkeys(("revision", "variant", "vae", "prediction_type")))
    if "data.instance_dir" in given and config.data.instance_dir == EMBEDDED_SUBJECT:
        data = config.data.model_copy(update=dict.fromkeys(("instance_prompt", "class_prompt", "class_dir")))
        config = config.model_copy(update={"data": data})
    return config


def dump_config(config: Config) -> str:
    """Returns the whole configuration as YAML, which `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def first_conflict(old: Config, new: Config) -> tuple[str, Any, Any] | None:
    """Returns the first key, with both values, in which `new` may not continue a run that was started as `old`."""
    before, after = flatten(old), flatten(new)
    # Where placeholder tokens have the first share of the steps, the number of steps decides which those are.
    free = FREE_TO_CHANGE - ({"train.steps"} if new.text.token_training == "pivotal" else set())
    for key, value in after.items():
        if key not in free and key.split(".")[0] not in FREE_SECTIONS and before[key] != value:
            return key, before[key], value
    return None
