"""`jaxbooth evaluate`: its flags."""

from pathlib import Path

from tyro.conf import Positional

from jaxbooth.cli.parse import parse
from jaxbooth.config.limits import GuidanceScale, PairedImageCount, SamplerSteps, Seed, Step
from jaxbooth.config.section import Section
from jaxbooth.diffusion.samplers import SamplerName


class EvaluateArguments(Section):
    """Measure a run: DINO and CLIP-I (subject), CLIP-T (prompt), PRES and DIV (class), beside its base model."""

    run: Positional[str]
    """Run folder."""
    step: Step | None = None
    """Step of the checkpoint; default: the newest."""
    compare: tuple[str, ...] = ()
    """Other runs, RUN@STEP, or models to measure beside it."""
    prompts: str = "auto"
    """live or object (the paper's 25 each; auto: by class), or a text file with one prompt per line and {} for the
    subject."""
    images_per_prompt: PairedImageCount = 4
    """Images of each subject prompt; the paper has 4."""
    num_class_images: PairedImageCount = 32
    """Images of the class prompt."""
    subject: str | None = None
    """What replaces {}, such as "sks dog"; default: taken from the instance prompt."""
    noun: str | None = None
    """The class in it, such as dog; default: taken from the class prompt."""
    clip: str | None = None
    """CLIP folder or Hub id, or none; default: openai/clip-vit-base-patch32, and the embedded one for embedded
    models."""
    dino: str | None = None
    """DINO or DINOv2 folder or Hub id, or none; default: facebook/dino-vits16, and none for embedded models."""
    allow_pickle: bool = False
    """Also read .bin files of CLIP and DINO, with PyTorch's weights-only loader."""
    seed: Seed = 0
    """Determines the noise."""
    sampler: SamplerName | None = None
    """Default: the run's validation sampler."""
    steps: SamplerSteps | None = None
    """Sampling steps of one image, each a network evaluation (two with heun); default: as in the run's validation."""
    guidance_scale: GuidanceScale | None = None
    """Default: the run's validation guidance."""
    out: Path | None = None
    """Folder for evaluation.json and the images; default: RUN/evaluation."""


def evaluate_command(argv: list[str]) -> None:
    """Parses the flags and evaluates."""
    arguments = parse(EvaluateArguments, argv, "jaxbooth evaluate")
    from jaxbooth.evaluation.evaluate import evaluate

    evaluate(**dict(arguments))
