"""The section of a run's configuration that says how the model keeps what it knew, and what follows from it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from annotated_types import Len
from pydantic import BeforeValidator
from tyro.conf import arg

from jaxbooth.config import limits
from jaxbooth.config.loss import LossConfig
from jaxbooth.config.section import Section
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.diffusion.weighting import Weighting

RowMethod = Literal["class-images", "output-preservation", "blank-prompt"]  # each has rows of its own in a batch
PriorMethod = Literal[RowMethod, "weight-anchor"]
PRIOR_METHODS: tuple[PriorMethod, ...] = (*get_args(RowMethod), "weight-anchor")
ROW_METHODS: tuple[RowMethod, ...] = get_args(RowMethod)


def split_methods(value: Any) -> Any:
    """Takes one name for a list of one, as people write it in YAML."""
    return (value,) if isinstance(value, str) else value


class PriorConfig(Section):
    """How the model keeps what it knew."""

    method: Annotated[
        tuple[Literal[PriorMethod, "none"], ...], Len(1, len(PRIOR_METHODS)), BeforeValidator(split_methods)
    ] = ("class-images",)
    """One or more of class-images (the paper's: the frozen model's own images of the class), output-preservation (the
    subject's latents under the caption without the identifier, target: the frozen model's prediction), blank-prompt
    (the same under the empty caption) and weight-anchor (a pull to the base model's weights); or none."""
    weight: Annotated[limits.Weight, arg(aliases=["--train.prior-weight"])] = 1.0
    """Lambda, the weight of each method with rows that has none of its own; 0 turns those off."""
    class_images_weight: limits.Weight | None = None
    """Weight of class-images; default: --prior.weight."""
    output_preservation_weight: limits.Weight | None = None
    """Weight of output-preservation; default: --prior.weight."""
    blank_prompt_weight: limits.Weight | None = None
    """Weight of blank-prompt; default: --prior.weight."""
    weight_anchor_weight: limits.Weight = 0.01
    """Weight of weight-anchor: of the sum of squared changes over all trained weights, of a LoRA over those of the
    merged kernels."""
    outside_mask_weight: limits.Weight | None = None
    """Weight of --loss.outside-mask frozen; default: --prior.weight."""
    rows: Annotated[limits.PriorRows | None, arg(aliases=["--train.prior-batch-size"])] = None
    """Rows per step of each method that has rows; default: as many as instance images."""
    target: Literal["noise", "frozen"] = "noise"
    """Target of class images: their noise (the paper's), or the frozen model's prediction for the same latents."""
    weighting: Weighting | None = None
    """Weight over timesteps of all prior rows; default: that of instance images."""
    class_caption: limits.Prompt | None = None
    """Caption of output-preservation rows; default: each image's own without the identifier."""
    sampler: SamplerName | None = None
    """What generates class images. Default: ddpm, the paper's ancestral sampler; euler for flow models."""
    steps: limits.SamplerSteps = 50
    """Sampling steps of one class image, each a network evaluation (two with heun)."""
    guidance_scale: limits.GuidanceScale | None = None
    """Classifier-free guidance of class images; 1 turns it off. Default: what suits the base model, such as 7.5 for SD
    1.5."""
    full_precision: bool = False
    """Generate class images with the base model as it was published, before --model-quantization; it has to fit into
    memory for that."""
    sample_batch_size: limits.DeviceBatchSize = 8
    """Class images that each device generates at once. The number of devices does not change the images."""
    seed: limits.Seed = 0
    """Determines the class images; runs with different --seed can share them."""

    @property
    def weights(self) -> dict[PriorMethod, float]:
        """The methods that are on, in the order of `PRIOR_METHODS`, and their weights."""
        weights: dict[PriorMethod, float] = {
            "class-images": self.own_or_shared(self.class_images_weight),
            "output-preservation": self.own_or_shared(self.output_preservation_weight),
            "blank-prompt": self.own_or_shared(self.blank_prompt_weight),
            "weight-anchor": self.weight_anchor_weight,
        }
        without_rows = ROW_METHODS if self.rows == 0 else ()
        return {
            method: weight
            for method, weight in weights.items()
            if method in self.method and weight > 0 and method not in without_rows
        }

    def own_or_shared(self, weight: float | None) -> float:
        """Returns a weight of its own, or else the shared one."""
        return self.weight if weight is None else weight

    @property
    def uses_class_images(self) -> bool:
        """Whether class images are trained on."""
        return "class-images" in self.weights

    @property
    def row_methods(self) -> tuple[RowMethod, ...]:
        """The methods that are on and have rows."""
        return tuple(method for method in ROW_METHODS if method in self.weights)

    @property
    def distilled_methods(self) -> tuple[RowMethod, ...]:
        """Those of them whose target is the frozen model's prediction."""
        return tuple(method for method in self.row_methods if method != "class-images" or self.target == "frozen")

    @property
    def has_own_captions(self) -> bool:
        """Whether rows see other captions than their images have."""
        return "output-preservation" in self.weights

    def rows_of(self, method: RowMethod, instance_rows: int) -> int:
        """Returns the rows of a method in a step with so many instance rows."""
        return self.rows_per_method(instance_rows) if method in self.weights else 0

    def rows_per_method(self, instance_rows: int) -> int:
        """Returns the rows of every method that is on and has rows."""
        return instance_rows if self.rows is None else self.rows

    def total_rows(self, instance_rows: int) -> int:
        """Returns the prior rows of a step with so many instance rows."""
        return sum(self.rows_of(method, instance_rows) for method in ROW_METHODS)


def outside_mask_weight(loss: LossConfig, prior: PriorConfig) -> float:
    """Returns the weight of the frozen model's prediction outside the masks; 0 where nothing is asked of that."""
    return prior.own_or_shared(prior.outside_mask_weight) if loss.outside_mask == "frozen" else 0.0


def describe_terms(terms: Mapping[str, float]) -> str:
    """Writes the terms that keep what the model knew with their weights, "class-images 1, weight-anchor 0.01"."""
    return ", ".join(f"{name} {weight:g}" for name, weight in terms.items()) or "none"
