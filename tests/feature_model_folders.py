"""Small random CLIPs, DINOs and DINOv2s as transformers saves them, and their features in PyTorch."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.metrics.preprocess import read_preprocessing

VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 2246, "max_position_embeddings": 16, "bos_token_id": 2244, "eos_token_id": 2245}  # fmt: skip


def save(model: Any, folder: Path, processor: Any, dtype: str = "float32", **how: Any) -> Path:
    """Writes a model, after its parameters were moved off their initial values, and its image processor."""
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1 * torch.randn(value.shape)
    model.to(getattr(torch, dtype)).save_pretrained(folder, **how)
    processor.save_pretrained(folder)
    return folder


def save_clip(folder: Path, dtype: str = "float32", **how: Any) -> Path:
    """Writes a CLIP of 32 px with the embedded model's tokenizer."""
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=TEXT, vision_config=VISION | {"intermediate_size": 64}, projection_dim=20
    )
    processor = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    shutil.copytree(DEMO_MODEL / "tokenizer", folder)
    return save(transformers.CLIPModel(config), folder, processor, dtype, **how)


def save_dino(folder: Path, **how: Any) -> Path:
    """Writes a DINO of 32 px."""
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(**VISION, intermediate_size=64))
    return save(model, folder, transformers.ViTImageProcessorPil(size={"height": 32, "width": 32}), **how)


def save_dinov2(folder: Path, gated: bool = False, **how: Any) -> Path:
    """Writes a DINOv2 that was trained at 32 px and is used at 24."""
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**VISION, use_swiglu_ffn=gated))
    processor = transformers.BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 24, "width": 24})
    return save(model, folder, processor, **how)


def sample_images(rng: np.random.Generator) -> list[Image.Image]:
    """Returns five images of different sizes and modes."""
    shapes = [(40, 60, 3), (33, 32, 3), (7, 90, 3), (64, 64), (50, 31, 4)]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def unit(features: torch.Tensor) -> np.ndarray:
    """Returns features of length 1."""
    return torch.nn.functional.normalize(features, dim=-1).numpy()


def pixel_values(folder: Path, model_type: str, images: list[Image.Image]) -> torch.Tensor:
    """Returns the prepared images in PyTorch's layout."""
    prepare = read_preprocessing(folder, model_type)
    return torch.from_numpy(np.stack([prepare(image) for image in images])).permute(0, 3, 1, 2)


def clip_in_torch(folder: Path, images: list[Image.Image], prompts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns image and text features of length 1."""
    model = transformers.CLIPModel.from_pretrained(folder, dtype=torch.float32)
    words = transformers.CLIPTokenizer.from_pretrained(tokenizer_folder(folder))
    length = model.config.text_config.max_position_embeddings
    ids = words(prompts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        found = model(**ids, pixel_values=pixel_values(folder, "clip", images))
    return unit(found.image_embeds), unit(found.text_embeds)


def tokenizer_folder(folder: Path) -> Path:
    """Returns where a CLIP's tokenizer lies."""
    return folder if (folder / "vocab.json").exists() else DEMO_MODEL / "tokenizer"


def dino_in_torch(folder: Path, images: list[Image.Image]) -> np.ndarray:
    """Returns the class token's features of length 1."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found = model(pixel_values=pixel_values(folder, model.config.model_type, images))
    return unit(found.last_hidden_state[:, 0])
