"""Diffusers folders of every family: tiny, untrained, and usable, for comparisons of text and images.

PyTorch's own initialisation keeps activations in range; embeddings are made large, so that prompts matter.
"""

from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers

from jaxbooth.assets import DEMO_MODEL

Kind = Literal["sd1", "sd2", "sdxl"]
KINDS: tuple[Kind, ...] = ("sd1", "sd2", "sdxl")
END = 2245  # id of the end token of the embedded model's tokenizer, which is the last of its vocabulary
LEGACY_END = 2  # what configurations before transformers 4.31 say

TEXT = {"vocab_size": END + 1, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 4, "max_position_embeddings": 32, "projection_dim": 24}  # fmt: skip
UNET: dict[str, Any] = {
    "sample_size": 16, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
UNETS: dict[Kind, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 32, "attention_head_dim": 4},
    "sd2": {"cross_attention_dim": 32, "attention_head_dim": (2, 4), "use_linear_projection": True,
            "upcast_attention": True},
    "sdxl": {"cross_attention_dim": 32 + 40, "attention_head_dim": (2, 4), "use_linear_projection": True,
             "transformer_layers_per_block": (1, 2), "addition_embed_type": "text_time",
             "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24 + 6 * 8},
}  # fmt: skip
VAE = {"block_out_channels": (16, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 8,
       "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4}  # fmt: skip


def write_pipeline(
    kind: Kind, folder: Path, end: int = END, prediction: str = "epsilon", text: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:  # fmt: skip
    """Writes a pipeline of `kind` as diffusers saves it.

    Args:
        end: the configurations' `eos_token_id`.
        text: further values of the text encoders' configurations.
        settings: further arguments of the pipeline.
    """
    torch.manual_seed(0)
    clip = TEXT | {"eos_token_id": end, "hidden_act": "gelu" if kind == "sd2" else "quick_gelu"} | (text or {})
    parts = {
        "unet": diffusers.UNet2DConditionModel(**UNET, **UNETS[kind]),
        "vae": diffusers.AutoencoderKL(**VAE, scaling_factor=0.13025 if kind == "sdxl" else 0.18215),
        "text_encoder": text_model(transformers.CLIPTextModel, clip),
        "tokenizer": tokenizer("!" if kind == "sd2" else "<|endoftext|>"),
        "scheduler": diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
            set_alpha_to_one=False, steps_offset=1, prediction_type=prediction,
        ),
    }  # fmt: skip
    if kind == "sdxl":
        parts["text_encoder_2"] = text_model(
            transformers.CLIPTextModelWithProjection, clip | {"hidden_size": 40, "hidden_act": "gelu"}
        )
        parts["tokenizer_2"] = tokenizer("!")
        diffusers.StableDiffusionXLPipeline(**parts, **settings).save_pretrained(folder)
    else:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        diffusers.StableDiffusionPipeline(**parts, **none, **settings).save_pretrained(folder)
    return folder


def text_model(kind: type, config: dict[str, Any]) -> Any:
    """Builds a text encoder whose features depend on its tokens much more than on their places."""
    model = kind(transformers.CLIPTextConfig(**config))
    with torch.no_grad():
        model.get_input_embeddings().weight *= 30
    return model


def tokenizer(pad_token: str) -> transformers.CLIPTokenizer:
    """Opens the embedded model's tokenizer with another padding."""
    return transformers.CLIPTokenizer.from_pretrained(DEMO_MODEL / "tokenizer", pad_token=pad_token)


def in_torch(folder: Path) -> Any:
    """Opens a folder in diffusers, in float32."""
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for name in ("text_encoder", "text_encoder_2"):
        if hasattr(pipe, name):  # diffusers' `clip_skip` asks for the module that transformers 5 took away
            encoder = getattr(pipe, name)
            object.__setattr__(encoder, "text_model", getattr(encoder, "text_model", encoder))
    return pipe
