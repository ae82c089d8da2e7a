"""The whole configuration of a run, and what follows from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator

from jaxbooth.assets import DEMO_SUBJECT, EMBEDDED_MODELS
from jaxbooth.config.limits import Regex, Seed
from jaxbooth.config.loss import LossConfig
from jaxbooth.config.prior import PriorConfig, outside_mask_weight
from jaxbooth.config.schema import (
    DataConfig,
    DefaultRates,
    DistributedConfig,
    EvaluationConfig,
    LoraConfig,
    MeshConfig,
    SchedulerPrediction,
    Subject,
    TextConfig,
    TrainConfig,
    ValidationConfig,
)
from jaxbooth.config.section import Section, flatten
from jaxbooth.errors import UserError
from jaxbooth.models.quantization import Quantization
from jaxbooth.storage.paths import local_path
from jaxbooth.storage.remote import as_path, is_local
from jaxbooth.weights.family import FamilySampling
from jaxbooth.weights.source import Source

AnySection = TypeVar("AnySection", bound=Section)
SectionWithFolders = TypeVar("SectionWithFolders", DataConfig, Subject)
EMBEDDED_SUBJECT = Path("demo")  # as `data.instance_dir`
# What may change when a run is continued: nothing here alters a step that is already done.
FREE_TO_CHANGE = {
    "run_dir", "force", "fit", "export", "offline", "allow_pickle", "train.steps", "train.steps_per_dispatch",
    "train.checkpoint_every", "train.max_checkpoints", "train.gradient_accumulation_steps", "train.remat",
    "prior.sample_batch_size",
}  # fmt: skip
FREE_SECTIONS = ("mesh", "validation", "evaluation")


class Config(Section):
    """Everything that decides a run."""

    model: str = "demo"
    """Base model: a diffusers folder, a single .safetensors file, a Hub id, or an embedded one: "demo" (a tiny Stable
    Diffusion) or "demo-flow" (a tiny Z-Image)."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    variant: str | None = None
    """Weight files to take where a model has several, such as fp16."""
    vae: str | None = None
    """Another VAE: a folder, a single file or a Hub id."""
    prediction_type: SchedulerPrediction | None = None
    """What the network predicts, if the checkpoint states it wrong."""
    components: str | None = None
    """Model that text encoder, VAE and scheduler come from if the model is one file of a transformer alone. Default:
    the published model of its size."""
    model_quantization: Quantization = "none"
    """What frozen weights are held in, under a LoRA or placeholder tokens: int8 or fp8 (half of bfloat16's memory), nf4
    or int4 (little more than a quarter). What is trained and exported keeps its own precision."""
    allow_pickle: bool = False
    """Also read .ckpt and .bin files, with PyTorch's weights-only loader."""
    offline: bool = False
    """Never contact the Hub; use what was downloaded before."""
    run_dir: Annotated[str, BeforeValidator(str)] = "runs/dreambooth"
    """Folder of this run, also gs://BUCKET/FOLDER. The same command again resumes it."""
    seed: Seed = 0
    """Determines noise, timesteps, the order of images and crops."""
    force: bool = False
    """Train even if the estimate says that the devices have too little memory."""
    fit: bool = False
    """Where the devices have too little memory by the estimate, apply the cheapest change that leaves what is trained
    as it is: accumulation, remat, FSDP, quantization or a smaller rank, in this order."""
    export: bool = True
    """Write RUN/export, in the smallest format that holds the result, when the run is complete."""
    data: DataConfig = DataConfig()
    prior: PriorConfig = PriorConfig()
    train: TrainConfig = TrainConfig()
    default_lora_targets: Regex = "attention"
    """Layers that a LoRA of this base model adapts if --lora.targets is not set."""
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
            self.model,
            self.revision,
            self.variant,
            self.vae,
            self.allow_pickle,
            self.offline,
            self.prediction_type,
            self.components,
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
                validation_dir=data.validation_dir,
            ),
        )

    @property
    def has_held_out(self) -> bool:
        """Whether there are images of a subject that the loss is measured on and that are not trained on."""
        return self.data.hold_out > 0 or any(subject.validation_dir for subject in self.subjects)

    @property
    def lora_targets(self) -> str:
        """Layers that a LoRA adapts, as `models.lora.target_layers` takes them: as set, or the base model's default."""
        return self.lora.targets or self.default_lora_targets

    @property
    def prior_rows(self) -> int:
        """Prior rows of a step, of all methods."""
        return self.prior.total_rows(self.train.batch_size)

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.train.batch_size + self.prior_rows

    @property
    def needs_reference(self) -> bool:
        """Whether the frozen model's predictions are the target of anything."""
        return bool(self.prior.distilled_methods) or self.outside_mask_weight > 0

    @property
    def needs_empty_caption(self) -> bool:
        """Whether any row may have the empty caption."""
        return self.text.caption_dropout > 0 or "blank-prompt" in self.prior.weights

    @property
    def is_anchored(self) -> bool:
        """Whether the weights are pulled back to the base model's."""
        return "weight-anchor" in self.prior.weights

    @property
    def prior_terms(self) -> dict[str, float]:
        """Name -> weight of everything that keeps what the model knew."""
        outside = {"outside-mask": self.outside_mask_weight} if self.outside_mask_weight else {}
        return {**self.prior.weights, **outside}

    @property
    def outside_mask_weight(self) -> float:
        """See `config.prior.outside_mask_weight`."""
        return outside_mask_weight(self.loss, self.prior)

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


def resolve_paths(config: Config) -> Config:
    """Makes local paths absolute and expands "demo", so that the run folder works from anywhere."""
    data = resolve_folders(config.data)
    data = data.model_copy(update={"subjects": tuple(resolve_folders(subject) for subject in data.subjects)})
    run_dir = as_path(config.run_dir)
    return config.model_copy(
        update={
            "run_dir": str(run_dir) if is_local(run_dir) else config.run_dir,
            "data": data,
            "lora": config.lora.model_copy(update={"init": resolve_path(config.lora.init)}),
            "model": resolve_model_name(config.model),
            "vae": resolve_model_name(config.vae),
            "components": resolve_model_name(config.components),
        }
    )


def resolve_folders(section: SectionWithFolders) -> SectionWithFolders:
    """Makes a subject's folders absolute."""
    folders = {key: resolve_path(getattr(section, key)) for key in ("instance_dir", "class_dir", "validation_dir")}
    return section.model_copy(update=folders)


def resolve_path(path: Path | None) -> Path | None:
    """Returns an absolute path; "demo" is the embedded subject's folder."""
    if path == EMBEDDED_SUBJECT:
        return DEMO_SUBJECT
    return local_path(path).absolute() if path else None


def resolve_model_name(name: str | None) -> str | None:
    """Returns the absolute path of a local model, and any other model's name as it is."""
    path = local_path(name or "")
    return str(path.absolute()) if name and name not in EMBEDDED_MODELS and path.exists() else name


def fill_defaults(config: Config, native_resolution: int, sampling: FamilySampling) -> Config:
    """Takes what suits the base model where nothing is set: its resolution in pixels, and how it is sampled."""
    prior, validation = config.prior, config.validation
    prior_defaults = {"sampler": sampling.prior_sampler, "guidance_scale": sampling.guidance_scale}
    validation_defaults = {"sampler": sampling.sampler, "guidance_scale": sampling.guidance_scale}
    return config.model_copy(
        update={
            "data": fill_unset(config.data, {"resolution": native_resolution}),
            "prior": fill_unset(prior, prior_defaults),
            "validation": fill_unset(validation, validation_defaults),
        }
    )


def fill_unset(section: AnySection, defaults: Mapping[str, Any]) -> AnySection:
    """Returns a section with defaults in the place of None."""
    return section.model_copy(update={key: value for key, value in defaults.items() if getattr(section, key) is None})


def first_conflict(old: Config, new: Config) -> tuple[str, Any, Any] | None:
    """Returns the first key, with both values, in which `new` may not continue a run that was started as `old`."""
    before, after = flatten(old), flatten(new)
    # Where placeholder tokens have the first share of the steps, the number of steps decides which those are.
    free = FREE_TO_CHANGE - ({"train.steps"} if new.text.token_training == "pivotal" else set())
    for key, value in after.items():
        if key not in free and key.split(".")[0] not in FREE_SECTIONS and before[key] != value:
            return key, before[key], value
    return None
