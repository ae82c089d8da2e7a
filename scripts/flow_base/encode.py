"""Encodes the images once, on several backgrounds, before training: VAE latents and CLIP features.

    python scripts/flow_base/encode.py DATA --vae jaxbooth/assets/tiny-emoji/vae --clip jaxbooth/assets/tiny-emoji-clip

Each image is encoded six times: once on white, once in its place on a random background, and four times moved and
made smaller as well. Writes DATA/vae (with the shift and scale that flow pipelines use), DATA/latents.pt (100 MB) and
DATA/features.pt (1.2 GB). The features are the patches of the second last layer, each feature with mean 0 and
deviation 1; their 8 x 8 patches lie where the transformer's 8 x 8 tokens do. Takes 3 minutes on one core.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPModel

COLORS = {
    "white": (255, 255, 255),
    "red": (226, 74, 74),
    "orange": (245, 158, 66),
    "yellow": (250, 220, 90),
    "green": (110, 190, 110),
    "blue": (96, 150, 240),
    "purple": (160, 110, 210),
    "pink": (245, 160, 200),
    "gray": (150, 150, 155),
    "black": (28, 28, 32),
}
COLOR_NAMES = list(COLORS)
COLOR_VALUES = torch.tensor(list(COLORS.values()), dtype=torch.float32) / 255
VARIANTS = 6
WHITE_SHARE = 0.45
BATCH = 64
VAE_SHIFT = 0.1198  # mean and inverse deviation of the latents
VAE_SCALE = 0.4359


def variant_colors(variant: int, count: int, generator: torch.Generator) -> Tensor:
    """Returns the background of every image; the first variant is all white."""
    white = torch.rand(count, generator=generator) < WHITE_SHARE
    colors = torch.randint(len(COLORS), (count,), generator=generator)
    return torch.zeros_like(colors) if variant == 0 else colors.masked_fill(white, 0)


def move(rgba: Tensor, generator: torch.Generator) -> Tensor:
    """Shrinks images by up to 1.25 and shifts them within the frame, (batch, 4, 64, 64)."""
    count = len(rgba)
    scale = 1 + 0.25 * torch.rand(count, generator=generator)
    shift = (torch.rand(count, 2, generator=generator) * 2 - 1) * (scale - 1)[:, None] * 0.9
    transform = torch.zeros(count, 2, 3)
    transform[:, 0, 0] = scale
    transform[:, 1, 1] = scale
    transform[:, :, 2] = shift
    grid = torch.nn.functional.affine_grid(transform, list(rgba.shape), align_corners=False)
    return torch.nn.functional.grid_sample(rgba, grid, align_corners=False)


def variant_batches(images: Tensor, variant: int, colors: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields one variant's images in [-1, 1], (batch, 3, 64, 64)."""
    for start in range(0, len(images), BATCH):
        rgba = images[start : start + BATCH].float().div(255).permute(0, 3, 1, 2)
        if variant >= 2:
            rgba = move(rgba, generator)
        background = COLOR_VALUES[colors[start : start + BATCH]][:, :, None, None]
        yield (rgba[:, :3] + background * (1 - rgba[:, 3:])) * 2 - 1


def normalize_features(features: Tensor) -> None:
    """Gives every feature mean 0 and deviation 1, in place, (variants, images, patches, channels)."""
    some = features[0, ::4].float().flatten(0, 1)
    mean = some.mean(0)
    deviation = some.std(0)
    for variant in features:
        variant.copy_((variant.float() - mean) / deviation)


@torch.no_grad()
def encode(images: Tensor, vae: AutoencoderKL, clip: Any) -> tuple[dict[str, Tensor], Tensor]:
    """Returns latents with their backgrounds, and features."""
    generator = torch.Generator().manual_seed(7)
    shape = (VARIANTS, len(images))
    colors = torch.empty(shape, dtype=torch.long)
    latents = torch.empty(*shape, 4, 16, 16, dtype=torch.half)
    features = torch.empty(*shape, 64, clip.config.hidden_size, dtype=torch.half)
    for variant in range(VARIANTS):
        colors[variant] = variant_colors(variant, len(images), generator)
        batches = variant_batches(images, variant, colors[variant], generator)
        for start, batch in zip(range(0, len(images), BATCH), batches, strict=True):
            part = (variant, slice(start, start + BATCH))
            with torch.autocast("cpu", torch.bfloat16):
                latents[part] = vae.encode(batch).latent_dist.mean.half()
                hidden = clip(pixel_values=batch, output_hidden_states=True).hidden_states[-2]
            features[part] = hidden[:, 1:].half()
        print("variant", variant, flush=True)
    normalize_features(features)
    scaled = (latents.float() - VAE_SHIFT) * VAE_SCALE
    print(f"latents: mean {scaled.mean():.3f}, deviation {scaled.std():.3f}")
    return {"latents": latents, "colors": colors}, features


def main() -> None:
    """Writes the VAE, the latents and the features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    arguments = parser.parse_args()
    data = arguments.data
    vae = AutoencoderKL.from_pretrained(arguments.vae).float().eval()
    vae.register_to_config(shift_factor=VAE_SHIFT, scaling_factor=VAE_SCALE)
    clip = CLIPModel.from_pretrained(arguments.clip).float().vision_model.eval()
    images = torch.from_numpy(np.load(data / "images.npz")["images"])
    assert len(images) == len(json.loads((data / "images.json").read_text()))
    latents, features = encode(images, vae, clip)
    torch.save(latents, data / "latents.pt")
    torch.save(features, data / "features.pt")
    vae.half().save_pretrained(data / "vae")


if __name__ == "__main__":
    main()
