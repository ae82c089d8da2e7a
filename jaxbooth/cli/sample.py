"""`jaxbooth sample`: its flags."""

from dataclasses import fields
from pathlib import Path

from tyro.conf import Positional

from jaxbooth.cli.parse import parse
from jaxbooth.config import limits
from jaxbooth.config.schema import SchedulerPrediction
from jaxbooth.config.section import Section
from jaxbooth.console.messages import pluralize, print_result
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.models.quantization import Quantization
from jaxbooth.weights.source import Source


class SampleArguments(Section):
    """Generate images and a contact sheet of them. Image i depends on the seed and on i alone, so a run can be compared
    with its base model. If the folder already has images of this seed, numbering continues after them."""

    source: Positional[str]
    """Run folder, model folder, Hub id, "demo" or "demo-flow"."""
    prompt: limits.Prompt
    """What to generate."""
    negative_prompt: limits.Prompt = ""
    """What the images should not show."""
    num: limits.ImageCount = 4
    """How many images to add to the folder."""
    seed: limits.Seed = 0
    """Seed of the noise."""
    steps: limits.SamplerSteps | None = None
    """Sampling steps; default: those of the run's sample grids, else 25 (4 to 9 for distilled models)."""
    guidance_scale: limits.GuidanceScale | None = None
    """Classifier-free guidance; 1 turns it off. Default: that of the run's sample grids, else what suits the model:
    7.5, 5 for SDXL, 4 for Z-Image and FLUX.2 klein, 1 for distilled models."""
    sampler: SamplerName | None = None
    """Default: that of the run's sample grids, else dpmpp_2m (euler for flow models, euler_ancestral for SD Turbo
    and SDXL Turbo)."""
    resolution: limits.Pixels | None = None
    """Side in pixels; default: the resolution that the model was trained at."""
    height: limits.Pixels | None = None
    """Height in pixels, for images that are not square."""
    width: limits.Pixels | None = None
    """Width in pixels, for images that are not square."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    variant: str | None = None
    """Which weight files to take if the model has several sets, such as fp16."""
    vae: str | None = None
    """Another VAE: a folder, a single file or a Hub id."""
    prediction_type: SchedulerPrediction | None = None
    """What the network predicts, if the checkpoint does not say so or is wrong."""
    components: str | None = None
    """Model that text encoder, VAE and scheduler come from if the source is one file of a transformer alone. Default:
    the published model of its size."""
    allow_pickle: bool = False
    """Also read .ckpt and .bin files, through PyTorch's weights-only loader."""
    offline: bool = False
    """Never contact the Hub; use what was downloaded before."""
    clip_skip: limits.ClipSkip = 0
    """Skip this many layers at the end of the text encoder. A run has its own value."""
    max_token_chunks: limits.ChunkCount = 1
    """A prompt may have this many chunks of 75 tokens. A run has its own value."""
    model_quantization: Quantization = "none"
    """Hold the weights in int8, fp8, int4 or nf4, to save memory. A run has its own value."""
    step: limits.Step | None = None
    """Step of a run's checkpoint; default: the newest."""
    out: Path = Path("samples")
    """Folder to save the images in."""


def sample_command(argv: list[str]) -> None:
    """Generates images and says where they are."""
    arguments = parse(SampleArguments, argv, "jaxbooth sample")
    from jaxbooth.cli.sample_images import sample

    given = arguments.model_dump()
    source = Source(given.pop("source"), *(given.pop(field.name) for field in fields(Source)[1:]))
    result = sample(source, **given)
    first, last = result.images[0].name, result.images[-1].name
    names = first if first == last else f"{first} to {last}"
    print_result(
        f"generated {pluralize(len(result.images), 'image')} in {arguments.out} ({names}; {result.description})"
    )
    print_result(f"contact sheet: {result.contact_sheet}")
