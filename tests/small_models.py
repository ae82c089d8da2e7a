"""Diffusers folders of every family, small and random."""

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.storage.files import write_json
from jaxbooth.weights.ldm.layout import components, layout

WEIGHTS = {"unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors",
           "text_encoder": "model.safetensors", "text_encoder_2": "model.safetensors"}  # fmt: skip
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

SD15_UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "block_out_channels": [32, 64], "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "norm_num_groups": 8, "cross_attention_dim": 24, "attention_head_dim": 4,
}  # fmt: skip
UNETS: dict[str, dict[str, Any]] = {
    "sd15": SD15_UNET,
    "sd21": SD15_UNET | {"use_linear_projection": True, "attention_head_dim": [2, 4]},
    "sdxl": SD15_UNET | {
        "block_out_channels": [32, 64, 64], "transformer_layers_per_block": [1, 1, 2], "attention_head_dim": [2, 4, 4],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
        "cross_attention_dim": 24 + 40, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [16, 32, 32], "layers_per_block": 2, "norm_num_groups": 8,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3, "latent_channels": 4,
}  # fmt: skip
CLIP = {"model_type": "clip_text_model", "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "vocab_size": 2246, "projection_dim": 24, "hidden_act": "quick_gelu"}  # fmt: skip
OPENCLIP = CLIP | {"hidden_act": "gelu"}
CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None], "feature_extractor": [None, None],
}  # fmt: skip


def write_model(family: str, folder: Path, dtype: str = "float32", **scheduler: Any) -> Path:
    """Writes a model with random weights; `scheduler` goes into its scheduler's configuration."""
    is_xl = family == "sdxl"
    write_json(folder / "unet" / "config.json", UNETS[family])
    write_json(folder / "vae" / "config.json", VAE)
    write_json(folder / "text_encoder" / "config.json", OPENCLIP if family == "sd21" else CLIP)
    if is_xl:
        wide = OPENCLIP | {"hidden_size": 40, "projection_dim": 16, "architectures": ["CLIPTextModelWithProjection"]}
        write_json(folder / "text_encoder_2" / "config.json", wide)
    tokenizers = ["tokenizer", "tokenizer_2"] if is_xl else ["tokenizer"]
    for name in tokenizers:
        shutil.copytree(DEMO_MODEL / "tokenizer", folder / name)
    scheduler_config = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config | scheduler)
    for component in components(folder):
        write_weights(folder, component, dtype)
    kind = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    parts = {name: value for name, value in CLASSES.items() if (folder / name).is_dir() or not (value[0] or is_xl)}
    write_json(folder / "model_index.json", {"_class_name": kind, **parts})
    return folder


def write_weights(folder: Path, component: str, dtype: str) -> None:
    """Writes one component's random weights, under the names that the Hub's folders have."""
    draw = np.random.default_rng(0)
    prefix = "text_model." if component.startswith("text_encoder") else ""
    tensors = {
        source if source.startswith("text_projection.") else prefix + source: draw.normal(size=entry.source_shape)
        for entry in layout(folder, component)
        if not entry.is_placeholder
        for source in entry.sources
    }
    cast = {name: tensor.astype(DTYPES[dtype]) for name, tensor in tensors.items()}
    save_file(cast, folder / component / WEIGHTS[component], metadata={"format": "pt"})


def weights(folder: Path, component: str) -> dict[str, np.ndarray]:
    """Reads one component's weights."""
    return load_file(folder / component / WEIGHTS[component])


def bare(file: Path) -> dict[str, bytes]:
    """Returns the content of each tensor of a file, under the name without a prefix that only some readers need."""
    return {name.removeprefix("text_model."): tensor.tobytes() for name, tensor in load_file(file).items()}


def scheduler_of(folder: Path) -> dict[str, Any]:
    """Reads the scheduler's configuration."""
    return json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns relative path -> content of every file under `folder`."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
