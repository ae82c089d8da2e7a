"""What both of PyTorch's subjects share."""

import json
from pathlib import Path
from typing import Any

import torch


def read_config(folder: str, component: str, name: str = "config.json") -> dict[str, Any]:
    """Reads a component's configuration."""
    name = "scheduler_config.json" if component == "scheduler" else name
    return json.loads((Path(folder) / component / name).read_text())


def resolution_of(folder: str) -> int:
    """Returns the model's own side in pixels."""
    factor = 2 ** (len(read_config(folder, "vae")["block_out_channels"]) - 1)
    return read_config(folder, "unet")["sample_size"] * factor


def tokens_of(folder: str) -> int:
    """Returns the length of a prompt."""
    return read_config(folder, "text_encoder")["max_position_embeddings"]


def conditions(
    unet: Any, rows: int, tokens: int, side: int, device: str, dtype: torch.dtype
) -> tuple[torch.Tensor, dict[str, torch.Tensor] | None]:
    """Returns random text features, and what SDXL takes beside them."""
    text = torch.randn(rows, tokens, unet.config.cross_attention_dim, device=device, dtype=dtype)
    if unet.config.addition_embed_type != "text_time":
        return text, None
    sizes = torch.tensor([[side, side, 0, 0, side, side]] * rows, device=device, dtype=dtype)
    return text, {"text_embeds": torch.randn(rows, 1280, device=device, dtype=dtype), "time_ids": sizes}
