"""The configuration of a run: a frozen schema, YAML files that hold what differs from it, and dotted flags on top."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from jaxbooth.assets import shipped_configs
from jaxbooth.diffusion.objective import Weighting
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.diffusion.schedule import Space
from jaxbooth.errors import UserError


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(Section):
    """The subject's pictures and the class."""

    instance_dir: Path | None = None
    """Folder with 3 to 6 pictures of the subject (jpg, png, webp, avif; heic with the heic extra). "demo": embedded."""
    instance_prompt: str | None = None
    """Prompt with a rare identifier, such as "a photo of sks dog", for pictures without a caption of their own."""
    class_dir: Path | None = None
    """Folder of class pictures; missing ones are generated into it. Default: RUN/prior."""
    class_prompt: str | None = None
    """Prompt of the class, without the identifier. Needed unless --train.prior-weight is 0."""
    num_class_images: PositiveInt = 200
    """Class pictures to have before training starts; all that are found are used, also when there are more."""
    resolution: PositiveInt | None = None
    """Side of the training pictures, in pixels; default: what the base model was trained at."""
    crop: Literal["center", "random"] = "center"
    """What to keep of a picture that is not square."""
    random_crops: PositiveInt = 4
    """Crops kept of each picture with --data.crop random."""
    flip: bool = False
    """Also train on mirrored pictures. Leave off for faces and anything with writing on it."""


class PriorConfig(Section):
    """How the frozen model makes class pictures."""

    sampler: SamplerName = "ddpm"
    """The paper uses the ancestral sampler, ddpm."""
    steps: PositiveInt = 50
    """Network evaluations for one picture."""
    guidance_scale: PositiveFloat = 7.5
    """Classifier-free guidance; 1 turns it off."""
    batch_size: PositiveInt = 8
    """Pictures made at once. It does not change the pictures."""
    seed: NonNegativeInt = 0
    """Decides the pictures, so that runs with other seeds can share them."""


class TrainConfig(Section):
    """The optimisation. A step is one optimizer update."""

    steps: PositiveInt = 1000
    """Length of the run. Raise it and run the same command again to train on."""
    batch_size: PositiveInt = 1
    """Instance rows of a step, over all devices and micro-batches."""
    prior_batch_size: NonNegativeInt | None = None
    """Prior rows of a step; default: as many as instance rows."""
    prior_weight: NonNegativeFloat = 1.0
    """Lambda, the weight of the prior term; 0 trains without it."""
    learning_rate: PositiveFloat | None = None
    """Peak learning rate; default 5e-6, and 1 for prodigy."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warmup: stay, or fall to 0 at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps of linear warmup from 0."""
    optimizer: Literal["adamw", "adafactor", "lion", "prodigy", "schedule_free_adamw"] = "adamw"
    """Update rule."""
    weight_decay: NonNegativeFloat = 1e-2
    """Decoupled weight decay, on every trained parameter."""
    b1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment (adamw, lion, prodigy, schedule_free_adamw)."""
    b2: float | None = Field(None, ge=0, lt=1)
    """Decay of the second moment; default 0.999, and 0.99 for lion."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment (adamw, prodigy, schedule_free_adamw)."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    accumulation: PositiveInt = 1
    """Micro-batches that a step's rows are cut into to save memory. It does not change the result."""
    remat: bool = False
    """Gradient checkpointing: recompute the blocks in the backward pass. Slower, much less memory."""
    text_encoder: bool = False
    """Also train the text encoder."""
    ema_decay: float | None = Field(None, gt=0, lt=1)
    """Keep an exponential moving average of the weights, and sample and export that."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; weights and optimizer stay float32. auto: bfloat16 on TPU and GPU, float32 on CPU."""
    loss_space: Space | None = None
    """Space of the squared error; default: what the network predicts."""
    weighting: Weighting = "uniform"
    """Weight over timesteps, for instance and prior rows alike."""
    snr_gamma: PositiveFloat = 5.0
    """Gamma of --train.weighting min_snr."""
    steps_per_dispatch: PositiveInt = 10
    """Steps that the device runs without asking the host. It does not change the result."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints; the last step is always kept."""
    keep_checkpoints: PositiveInt = 2
    """Newest checkpoints to keep."""


class MeshConfig(Section):
    """How the devices are arranged."""

    data: int = -1
    """Copies of the model; -1: all devices that the other axes leave."""
    fsdp: PositiveInt = 1
    """Parts that weights and optimizer state are cut into."""
    tensor: PositiveInt = 1
    """Parts that the transformer's wide layers are cut into."""


class ValidationConfig(Section):
    """The pictures drawn while training."""

    prompts: tuple[str, ...] = ()
    """Default: the instance prompt, the class prompt and one unrelated prompt."""
    every: PositiveInt = 100
    """Steps between sample grids; step 0 is the base model's."""
    num: PositiveInt = 4
    """Pictures of each prompt, with the same seeds every time."""
    sampler: SamplerName = "dpmpp_2m"
    """See `jaxbooth sample --help`."""
    steps: PositiveInt = 25
    """Network evaluations for one picture."""
    guidance_scale: PositiveFloat = 7.5
    """Classifier-free guidance; 1 turns it off."""


class Config(Section):
    """Everything that decides a run."""

    model: str = "demo"
    """Base model: a folder in diffusers layout, a Hub id, or "demo" (the embedded tiny-emoji)."""
    run_dir: Path = Path("runs/dreambooth")
    """Folder of this run; running the same command again continues it."""
    seed: NonNegativeInt = 0
    """Decides noise, timesteps, order and pictures."""
    export: bool = True
    """Write RUN/export, a diffusers folder, when the run is complete."""
    data: DataConfig = DataConfig()
    prior: PriorConfig = PriorConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    validation: ValidationConfig = ValidationConfig()

    @property
    def class_dir(self) -> Path:
        """Where class pictures live."""
        return self.data.class_dir or self.run_dir / "prior"

    @property
    def resolution(self) -> int:
        """Side of the training pictures in pixels; a run fills in its base model's where none is set."""
        assert self.data.resolution, "the resolution is filled in when a run starts"
        return self.data.resolution

    @property
    def prior_rows(self) -> int:
        """Prior rows of a step."""
        if self.train.prior_weight == 0:
            return 0
        return self.train.batch_size if self.train.prior_batch_size is None else self.train.prior_batch_size


# What may change when a run is continued: none of it alters a step that is already done.
FREE_TO_CHANGE = {
    "run_dir", "export", "train.steps", "train.steps_per_dispatch", "train.checkpoint_every",
    "train.keep_checkpoints", "train.accumulation", "train.remat", "prior.batch_size",
}  # fmt: skip
FREE_SECTIONS = ("mesh", "validation")


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


def explain(error: ValidationError, source: str) -> UserError:
    """Turns pydantic's report, on a whole configuration or on one section of it, into one sentence."""
    first = error.errors()[0]
    sections = {type(value).__name__: [key] for key, value in Config() if isinstance(value, Section)}
    key = ".".join(str(part) for part in [*sections.get(error.title, []), *first["loc"]])
    if first["type"] == "extra_forbidden":
        return UserError(f"{source}: unknown key {key!r}; `jaxbooth train --help` lists the keys.")
    return UserError(f"{source}: {key} = {first['input']!r} is not valid: {first['msg'].lower()}.")


def load_config(source: str | Path | None) -> Config:
    """Reads a configuration: a YAML file, the name of a shipped one (`demo`, `sd15`), or None for the defaults.

    Raises:
        UserError: no such file, not YAML, an unknown key or a value out of range.
    """
    if source is None:
        return Config()
    path = Path(source)
    if not path.is_file():
        shipped = shipped_configs() / f"{source}.yaml"
        if not shipped.is_file():
            names = ", ".join(sorted(p.stem for p in shipped_configs().glob("*.yaml")))
            raise UserError(f"{source} is neither a file nor one of the shipped configurations ({names}).")
        path = shipped
    try:
        raw = yaml.safe_load(path.read_text()) or {}
        if not isinstance(raw, dict):
            raise UserError(f"{path}: expected keys and values, found {type(raw).__name__}.")
        return Config.model_validate(raw)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; expected YAML.") from None
    except ValidationError as error:
        raise explain(error, str(path)) from None


def dump_config(config: Config) -> str:
    """Returns the whole configuration as YAML, which `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def first_conflict(old: Config, new: Config) -> tuple[str, Any, Any] | None:
    """Returns the first key, with both values, in which `new` may not continue a run that was started as `old`."""
    before, after = flatten(old), flatten(new)
    for key, value in after.items():
        if key not in FREE_TO_CHANGE and key.split(".")[0] not in FREE_SECTIONS and before[key] != value:
            return key, before[key], value
    return None
