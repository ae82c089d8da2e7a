"""The configuration that web UIs of CompVis' code want beside an SD 1.x or 2.x checkpoint that predicts v.

Reference: `configs/stable-diffusion/v2-inference-v.yaml` of https://github.com/Stability-AI/stablediffusion, and
`configs/stable-diffusion/v1-inference.yaml` of https://github.com/CompVis/stable-diffusion.
"""

from typing import Any

from jaxbooth.models.config import CLIPTextConfig, UNetConfig
from jaxbooth.weights.ldm.layout import is_openclip

MODULES = "ldm.modules"


def inference_config(unet: UNetConfig, text: CLIPTextConfig) -> dict[str, Any]:
    """Returns the content of the YAML file of an SD 1.x or 2.x model that predicts v."""
    return {
        "model": {
            "base_learning_rate": 1.0e-4,
            "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
            "params": {
                "parameterization": "v",
                "linear_start": 0.00085,
                "linear_end": 0.0120,
                "num_timesteps_cond": 1,
                "log_every_t": 200,
                "timesteps": 1000,
                "first_stage_key": "jpg",
                "cond_stage_key": "txt",
                "image_size": unet.sample_size or (96 if is_openclip(text) else 64),
                "channels": unet.in_channels,
                "cond_stage_trainable": False,
                "conditioning_key": "crossattn",
                "monitor": "val/loss_simple_ema",
                "scale_factor": 0.18215,
                "use_ema": False,
                "unet_config": unet_section(unet),
                "first_stage_config": vae_section(),
                "cond_stage_config": text_encoder_section(text),
            },
        }
    }


def text_encoder_section(text: CLIPTextConfig) -> dict[str, Any]:
    """Returns the text encoder's part: OpenAI's CLIP, which needs no settings, or OpenCLIP."""
    if not is_openclip(text):
        return {"target": f"{MODULES}.encoders.modules.FrozenCLIPEmbedder"}
    return {
        "target": f"{MODULES}.encoders.modules.FrozenOpenCLIPEmbedder",
        "params": {"freeze": True, "layer": "penultimate", "max_length": text.max_position_embeddings},
    }


def unet_section(unet: UNetConfig) -> dict[str, Any]:
    """Returns the UNet's part; LDM gives its attention by downsampling factor."""
    width = unet.block_out_channels[0]
    heads = {"num_head_channels": width // unet.heads[0], "use_linear_in_transformer": True}
    crossed = [2**level for level, block in enumerate(unet.down_block_types) if block.startswith("CrossAttn")]
    return {
        "target": f"{MODULES}.diffusionmodules.openaimodel.UNetModel",
        "params": {
            "use_checkpoint": True,
            "use_fp16": True,
            "image_size": 32,  # unused
            "in_channels": unet.in_channels,
            "out_channels": unet.out_channels,
            "model_channels": width,
            "attention_resolutions": crossed[::-1],
            "num_res_blocks": unet.layers[0] if len(set(unet.layers)) == 1 else list(unet.layers),
            "channel_mult": [channels // width for channels in unet.block_out_channels],
            **(heads if unet.use_linear_projection else {"num_heads": unet.heads[0]}),
            "use_spatial_transformer": True,
            "transformer_depth": unet.mid_transformers,
            "context_dim": unet.text_width,
            "legacy": False,
        },
    }


def vae_section() -> dict[str, Any]:
    """Returns the VAE's part, the same in every model."""
    return {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": 4,
            "monitor": "val/rec_loss",
            "ddconfig": {
                "double_z": True,
                "z_channels": 4,
                "resolution": 256,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 128,
                "ch_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
            },
            "lossconfig": {"target": "torch.nn.Identity"},
        },
    }
