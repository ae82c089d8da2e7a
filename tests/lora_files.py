"""Random LoRAs of every family, as files and in PyTorch."""

import functools
import re
from pathlib import Path

import diffusers
import jax
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

from jaxbooth.models.config import UNetConfig, read_config
from jaxbooth.models.denoiser_config import DenoiserConfig
from jaxbooth.params import ModuleDef
from jaxbooth.weights.lora.adapters import LoraWeights, to_adapters
from jaxbooth.weights.lora.names import LORA_COMPONENTS
from jaxbooth.weights.lora.write import write_comfyui, write_kohya, write_peft
from jaxbooth.weights.names import import_axes
from tests.flow_models import FLOW_FAMILIES, denoiser_config, transformer
from tests.test_models import SD1, SD2, SDXL

UNETS = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}


TEXT = {
    "vocab_size": 99, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 16, "projection_dim": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip


ONE_OF_EACH_KIND = re.compile(
    r"conv_in|conv_out|(time|add)_embedding\.linear_[12]|text_projection|encoder\.layers\.1\..*|"
    r"(down_blocks\.1|mid_block|up_blocks\.1)\.((down|up)samplers\.0\.conv|resnets\.1\.(conv.*|time_emb_proj)|"
    r"attentions\.0\.(proj_in|proj_out|transformer_blocks\.0\.(attn1\.to_(q|out\.0)|attn2\.to_k|ff\.net\.(0\.proj|2))))"
)


def torch_pipeline(family: str) -> diffusers.DiffusionPipeline:
    torch.manual_seed(0)
    if family in FLOW_FAMILIES:
        pipeline = {"zimage": diffusers.ZImagePipeline, "klein": diffusers.Flux2KleinPipeline}[family]
        others = dict.fromkeys(("scheduler", "vae", "text_encoder", "tokenizer"))
        return pipeline(**others, transformer=transformer(family))
    config = transformers.CLIPTextConfig(**TEXT)
    parts = {"vae": None, "tokenizer": None, "scheduler": None, "text_encoder": transformers.CLIPTextModel(config)}
    parts["unet"] = diffusers.UNet2DConditionModel(**UNETS[family])
    if family == "sdxl":
        second = transformers.CLIPTextModelWithProjection(config)
        return diffusers.StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=None)
    return diffusers.StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


@functools.cache
def structure(family: str) -> tuple[dict[str, ModuleDef], DenoiserConfig]:
    """The networks' kernels as PyTorch has them (tests/test_models.py holds the two sets of names equal)."""
    networks = {}
    for component, module in trainable(torch_pipeline(family)).items():
        kernels = {
            f"{name.removeprefix('text_model.')}.kernel": layer.weight
            for name, layer in module.named_modules()
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
        }
        shapes = {
            name: jax.ShapeDtypeStruct([weight.shape[axis] for axis in import_axes(name, weight.ndim)], np.float32)
            for name, weight in kernels.items()
        }
        networks[component] = ModuleDef(None, {}, shapes)
    if family in FLOW_FAMILIES:
        return networks, denoiser_config(family)
    return networks, read_config(UNetConfig, UNETS[family], "unet/config.json")


def trainable(pipeline: diffusers.DiffusionPipeline) -> dict[str, torch.nn.Module]:
    return {name: getattr(pipeline, name) for name in LORA_COMPONENTS if getattr(pipeline, name, None) is not None}


def random_lora(
    family: str, alphas: tuple[float, float] | None = (6.0, 3.0), dora: bool = False, every: bool = False
) -> LoraWeights:
    """Rank 4 in attention (and text_projection: diffusers wants it), 2 elsewhere; so the alphas, None is the rank."""
    rng, lora = np.random.default_rng(0), LoraWeights({}, {})
    for component, network in structure(family)[0].items():
        for name, leaf in network.shapes.items():
            module = name.removesuffix(".kernel")
            if module == name or not (every or ONE_OF_EACH_KIND.fullmatch(module)):
                continue
            *window, inputs, outputs = leaf.shape
            is_attention = re.search(r"attn|attention\.", name) is not None
            key, rank = f"{component}.{module}", 4 if is_attention or "text_projection" in name else 2
            shapes = {"lora_A.kernel": (*window, inputs, rank), "lora_B.kernel": (*(1 for _ in window), rank, outputs)}
            lora.adapters.update({f"{key}.{n}": rng.normal(size=s).astype(np.float32) for n, s in shapes.items()})
            if dora:
                lora.adapters[f"{key}.lora_magnitude_vector.scale"] = rng.uniform(1, 2, outputs).astype(np.float32)
            lora.alphas[key] = alphas[not is_attention] if alphas else float(rank)
    return lora


def torch_weights(pipeline: diffusers.DiffusionPipeline) -> dict[str, np.ndarray]:
    """Every weight by jaxbooth's module names, whatever PEFT put around it."""
    found = {}
    for component, module in trainable(pipeline).items():
        for name, value in module.state_dict().items():
            plain = name.replace(".base_layer", "").removeprefix("text_model.").removesuffix(".weight")
            found[f"{component}.{plain}"] = value.detach().numpy().copy()
    return found


def merged(weights: dict[str, np.ndarray], lora: LoraWeights) -> dict[str, np.ndarray]:
    """W + alpha / rank * B A in torch's layout; DoRA scales each output to its magnitude (arXiv 2402.09353, eq. 5)."""
    found = {}
    for adapter in to_adapters(lora):
        key = f"{adapter.component}.{adapter.module}"
        product = np.tensordot(adapter.lora_b.reshape(len(adapter.lora_b), -1), adapter.lora_a, 1)
        total = weights[key] + adapter.alpha / adapter.rank * product
        if adapter.magnitude is not None:
            norms = np.linalg.norm(total.reshape(len(total), -1), axis=1)
            total *= (adapter.magnitude / norms).reshape(-1, *(1 for _ in total.shape[1:]))
        found[key] = total
    return found


def write(layout: str, path: Path, lora: LoraWeights, family: str = "sd1", dtype: np.dtype | None = None) -> Path:
    networks, config = structure(family)
    head = {"step": "7"}
    match layout:
        case "peft":
            count = write_peft(path, lora, head, dtype)
        case "kohya":
            count = write_kohya(path, lora, config, head, dtype)
        case "comfyui":
            count = write_comfyui(path, lora, networks["transformer"], config, head, dtype)
    assert count == len(load_file(path))
    return path
