"""Diffusers folders of the flow families: tiny, random, and saved by diffusers and transformers themselves."""

from typing import Any, Literal

import diffusers
import torch

FlowFamily = Literal["zimage", "klein"]
FLOW_FAMILIES: tuple[FlowFamily, ...] = ("zimage", "klein")

Z_IMAGE: dict[str, Any] = {
    "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
    "cap_feat_dim": 24, "axes_dims": (8, 4, 4), "axes_lens": (64, 32, 32),
}  # fmt: skip
KLEIN: dict[str, Any] = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 3 * 24, "mlp_ratio": 2.0, "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": False,
    "timestep_guidance_channels": 16,
}  # fmt: skip


def transformer(family: FlowFamily) -> Any:
    """Builds a random transformer, whose pad tokens and norms are no constants either."""
    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(**Z_IMAGE) if family == "zimage" else None
    model = model or diffusers.Flux2Transformer2DModel(**KLEIN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model
