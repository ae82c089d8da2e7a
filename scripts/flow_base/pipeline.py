"""The whole base model as a diffusers folder: written, read, and sampled from."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from model import encode_text, predict_velocity, rotations, tokenize
from torch import Tensor
from transformers import AutoTokenizer, Qwen3Model

PIPELINE = {
    "_class_name": "ZImagePipeline",
    "_diffusers_version": "0.42.1",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class Pipeline(NamedTuple):
    """A trained pipeline, in float32."""

    tokenizer: Any
    text_encoder: Qwen3Model
    transformer: ZImageTransformer2DModel
    vae: AutoencoderKL

    @torch.no_grad()
    def generate(self, prompts: list[str], seed: int = 0, guidance: float = 4.0, steps: int = 20) -> Tensor:
        """Returns (batch, 3, 64, 64) images in [0, 1]; guidance as ZImagePipeline counts it (0 is none)."""
        ids, mask = tokenize(self.tokenizer, prompts + [""] * len(prompts))
        text = encode_text(self.text_encoder, ids)
        turns = rotations(self.transformer)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
        latents = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
        for now, following in zip(scheduler.sigmas[:-1], scheduler.sigmas[1:], strict=True):
            time = torch.full((len(ids),), 1 - now.item())
            both = torch.cat([latents, latents])
            velocity, _ = predict_velocity(self.transformer, turns, both, time, text, mask, torch.bfloat16)
            positive, negative = velocity.chunk(2)
            latents = latents + (now - following) * (positive + guidance * (positive - negative))
        config = self.vae.config
        decoded = self.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
        return ((decoded + 1) / 2).clamp(0, 1)


def load_pipeline(folder: Path) -> Pipeline:
    """Reads a pipeline that save_pipeline wrote."""
    return Pipeline(
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        Qwen3Model.from_pretrained(folder / "text_encoder").float().eval(),
        ZImageTransformer2DModel.from_pretrained(folder / "transformer").float().eval(),
        AutoencoderKL.from_pretrained(folder / "vae").float().eval(),
    )


def save_pipeline(folder: Path, data: Path, transformer: ZImageTransformer2DModel, text_encoder: Qwen3Model) -> None:
    """Writes a pipeline in float16, with the tokenizer and the VAE of `data`; replaces one that is there."""
    staging = folder.with_name(folder.name + ".new")
    replaced = folder.with_name(folder.name + ".old")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    staging.mkdir(parents=True)
    for name in ("tokenizer", "vae"):
        shutil.copytree(data / name, staging / name)
    FlowMatchEulerDiscreteScheduler(shift=2.0).save_pretrained(staging / "scheduler")
    transformer.half().save_pretrained(staging / "transformer")
    text_encoder.half().save_pretrained(staging / "text_encoder")
    (staging / "model_index.json").write_text(json.dumps(PIPELINE, indent=2) + "\n")
    for path in staging.glob("*/*"):
        path.chmod(0o644)
    if folder.exists():
        folder.rename(replaced)
    staging.rename(folder)
