"""The flags of `jaxbooth sample` and `jaxbooth export`."""

from pathlib import Path

import tyro
from pydantic import BaseModel, ConfigDict

from jaxbooth.config.limits import (
    ChunkCount,
    ClipSkip,
    GuidanceScale,
    ImageCount,
    Pixels,
    Prompt,
    SamplerSteps,
    Seed,
    Step,
)
from jaxbooth.config.schema import SchedulerPrediction
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.export.export import FormatName
from jaxbooth.weights.diffusers_write import ExportDtype


class Arguments(BaseModel):
    """Frozen command arguments."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class SampleArguments(Arguments):
    """Sample images, and write a contact sheet of them. Image i depends on the seed and i alone, so you can compare
    a run with its base model. If the folder has images of the seed already, the next numbers follow."""

    source: tyro.conf.Positional[str]
    """Run folder, model folder, Hub id or "demo"."""
    prompt: Prompt
    """What the images should show."""
    negative_prompt: Prompt = ""
    """What the images should not show."""
    num: ImageCount = 4
    """Images to sample, in addition to those in the folder."""
    seed: Seed = 0
    """Determines the noise."""
    steps: SamplerSteps | None = None
    """Network evaluations for one image; default: as in a run's sample grids, else 25 (4 for turbo models)."""
    guidance_scale: GuidanceScale | None = None
    """Classifier-free guidance; 1 turns it off. Default: as in a run's sample grids, else what suits the model: 7.5, 5
    for SDXL, 1 for turbo models."""
    sampler: SamplerName | None = None
    """Sampler; default: as in a run's sample grids, else dpmpp_2m (euler_ancestral for turbo models)."""
    resolution: Pixels | None = None
    """Side in pixels; default: what the model was trained at."""
    height: Pixels | None = None
    """Height in pixels, if the image is not square."""
    width: Pixels | None = None
    """Width in pixels, if the image is not square."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    variant: str | None = None
    """Weight files to take where a model has several, such as fp16."""
    vae: str | None = None
    """Another VAE: a folder, a single file or a Hub id."""
    prediction_type: SchedulerPrediction | None = None
    """What the network predicts, if the checkpoint states it wrong."""
    allow_pickle: bool = False
    """Also read .ckpt and .bin files, with PyTorch's weights-only loader."""
    offline: bool = False
    """Never contact the Hub; use what was downloaded before."""
    clip_skip: ClipSkip = 0
    """Last layers of the text encoder to leave out; a run uses its own setting."""
    max_token_chunks: ChunkCount = 1
    """Chunks of 75 tokens that a prompt may have; a run uses its own setting."""
    step: Step | None = None
    """Step of a run's checkpoint; default: the newest."""
    out: Path = Path("samples")
    """Folder for the images."""


class ExportArguments(Arguments):
    """Write a run in a format that PyTorch tools read."""

    run: tyro.conf.Positional[str]
    """Run folder."""
    out: Path
    """Folder to write; it must not exist yet."""
    format: FormatName | None = None
    """diffusers: a whole folder; single-file: for A1111 and ComfyUI; lora: adapters for both; embeddings: placeholder
    tokens. Default: the smallest that holds what was trained."""
    dtype: ExportDtype | None = None
    """Dtype of the written weights; base: as in the base model's files (float32 for a LoRA). Default: float32 for a
    diffusers folder, so that it opens without naming a dtype, and base for everything else."""
    verify: bool = False
    """Open the result in PyTorch diffusers and compare a denoising step (needs the torch extra)."""
    step: Step | None = None
    """Step of the checkpoint; default: the newest."""
    push: str | None = None
    """Upload the result with a model card to OWNER/NAME on the Hugging Face Hub."""
    public: bool = False
    """Make a repository that --push creates public."""
    license: str | None = None
    """Licence that the model card names, such as creativeml-openrail-m."""
