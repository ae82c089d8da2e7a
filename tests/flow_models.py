"""Diffusers folders of the flow families: tiny, random, and saved by diffusers and transformers themselves."""

from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from jaxbooth.models.config import read_config
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.weights.architectures import FAMILIES

FlowFamily = Literal["zimage", "klein"]
FLOW_FAMILIES: tuple[FlowFamily, ...] = ("zimage", "klein")

Z_IMAGE: dict[str, Any] = {
    "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
    "cap_feat_dim": 24, "axes_dims": (8, 4, 4), "axes_lens": (128, 32, 32),
}  # fmt: skip
KLEIN: dict[str, Any] = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 3 * 24, "mlp_ratio": 2.0, "axes_dims_rope": (4, 4, 4, 4), "guidance_embeds": False,
    "timestep_guidance_channels": 16,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (16, 16), "down_block_types": ("DownEncoderBlock2D",) * 2, "norm_num_groups": 8,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "latent_channels": 4, "layers_per_block": 1,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "vocab_size": 280, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "max_position_embeddings": 512,
}  # fmt: skip
PIPELINES = {"zimage": "ZImagePipeline", "klein": "Flux2KleinPipeline"}
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}"
    "{%- endif %}{%- endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
MERGES = ["Ġ a", "c a", "ca t", "Ġ cat", "Ġ s", "k s", "Ġs ks", "a t"]


def transformer(family: FlowFamily) -> Any:
    """Builds a random transformer, whose pad tokens and norms are no constants either."""
    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(**Z_IMAGE) if family == "zimage" else None
    model = model or diffusers.Flux2Transformer2DModel(**KLEIN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def denoiser_config(family: FlowFamily) -> DenoiserConfig:
    """The transformer's configuration here."""
    config = FAMILIES[family].denoiser.config
    raw = {"zimage": Z_IMAGE, "klein": KLEIN}[family]
    return read_config(config, raw, "transformer/config.json")


def write_pipeline(family: FlowFamily, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes a pipeline as diffusers saves it."""
    write_tokenizer(folder.parent / f"{folder.name} tokenizer")
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(folder.parent / f"{folder.name} tokenizer")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0, use_dynamic_shifting=family == "klein")
    settings = {} if family == "zimage" else {"is_distilled": False}
    pipe = getattr(diffusers, PIPELINES[family])(
        scheduler=scheduler, vae=vae(family), text_encoder=text_encoder(family), tokenizer=tokenizer,
        transformer=transformer(family), **settings,
    )  # fmt: skip
    pipe.to(dtype).save_pretrained(folder)
    return folder


def vae(family: FlowFamily) -> Any:
    """Builds a random autoencoder of two levels and four channels of latents."""
    torch.manual_seed(1)
    if family == "zimage":
        return diffusers.AutoencoderKL(
            **VAE, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.1159, scaling_factor=0.3611
        )
    model = diffusers.AutoencoderKLFlux2(**VAE)
    model.bn.running_mean.copy_(torch.randn(16))
    model.bn.running_var.copy_(torch.rand(16) + 0.5)
    return model


def text_encoder(family: FlowFamily) -> Any:
    """Builds a random language model, of as many layers as the family's pipeline asks for."""
    torch.manual_seed(2)
    config = transformers.Qwen3Config(**TEXT, num_hidden_layers=3 if family == "zimage" else 28)
    model = (transformers.Qwen3Model if family == "zimage" else transformers.Qwen3ForCausalLM)(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(50)  # prompts must matter
    return model


def write_tokenizer(folder: Path) -> None:
    """A vocabulary of single bytes and a few merges, with the special tokens and the template of Qwen3's form."""
    letters = sorted(bytes_to_unicode().values())
    vocabulary = [*letters, *("".join(merge.split()) for merge in MERGES)]
    tokenizer = transformers.Qwen2Tokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)},
        merges=[tuple(merge.split()) for merge in MERGES],
        eos_token="<|im_end|>", extra_special_tokens=list(SPECIAL[1:3]), chat_template=TEMPLATE,
    )  # fmt: skip
    tokenizer.add_tokens(list(SPECIAL))
    tokenizer.save_pretrained(folder)
