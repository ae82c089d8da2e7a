"""Names and shapes of the published CLIPs, DINOs and DINOv2s, without their weights."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors import safe_open

from jaxbooth.models.clip import CLIPModel
from jaxbooth.models.config import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    ViTConfig,
    read_clip_config,
    read_config,
)
from jaxbooth.models.layers import Layers
from jaxbooth.models.vit import VisionTransformer
from jaxbooth.params import ModuleDef, abstract_module
from jaxbooth.weights.names import (
    RENAMED_IN_CLIP_MODELS,
    RENAMED_IN_VISION_TRANSFORMERS,
    canonical,
    import_axes,
    torch_name,
)

CLIPS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-base-patch32": {"text_config": {}, "vision_config": {}, "projection_dim": 512},
    "openai/clip-vit-large-patch14": {
        "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                          "num_attention_heads": 16, "patch_size": 14},
        "projection_dim": 768,
    },
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": {
        "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                        "num_attention_heads": 16, "hidden_act": "gelu"},
        "vision_config": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
                          "num_attention_heads": 16, "patch_size": 14, "hidden_act": "gelu"},
        "projection_dim": 1024,
    },
}  # fmt: skip
DINOS = {
    "facebook/dino-vits16": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
    "facebook/dino-vitb8": {"patch_size": 8},
}
SECONDS = {
    "facebook/dinov2-small": {"hidden_size": 384, "num_attention_heads": 6},
    "facebook/dinov2-base": {},
    "facebook/dinov2-giant": {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24,
                              "use_swiglu_ffn": True},
}  # fmt: skip
PARAMETERS = {  # without a pooler, DINOv2's mask token and CLIP's temperature
    "openai/clip-vit-base-patch32": 151_277_312,
    "openai/clip-vit-large-patch14": 427_616_512,
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": 986_109_440,
    "facebook/dino-vits16": 21_665_664,
    "facebook/dino-vitb8": 85_807_872,
    "facebook/dinov2-small": 22_056_192,
    "facebook/dinov2-base": 86_579_712,
    "facebook/dinov2-giant": 1_136_479_232,
}
TINY = {"hidden_size": 8, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}


def config_of(name: str) -> Any:
    """Returns transformers' configuration of a published model."""
    if name in CLIPS:
        return transformers.CLIPConfig(**CLIPS[name])
    if name in DINOS:
        return transformers.ViTConfig(**DINOS[name])
    return transformers.Dinov2Config(**{"image_size": 518, "patch_size": 14} | SECONDS[name])


def model_of(config: Any) -> torch.nn.Module:
    """Builds transformers' model as the published files have it."""
    if isinstance(config, transformers.ViTConfig):
        return transformers.ViTModel(config, add_pooling_layer=False)
    kind = transformers.CLIPModel if isinstance(config, transformers.CLIPConfig) else transformers.Dinov2Model
    return kind(config)


def network_of(config: Any) -> tuple[ModuleDef, Any]:
    """Returns jaxbooth's structure of a model and how its names are read."""
    raw = config.to_dict()
    if isinstance(config, transformers.CLIPConfig):
        clip = read_clip_config(raw, "config.json")
        return abstract_module(lambda rngs: CLIPModel(clip, Layers(rngs))), RENAMED_IN_CLIP_MODELS
    seen = read_config(ViTConfig if config.model_type == "vit" else Dinov2Config, raw, "config.json")
    return abstract_module(lambda rngs: VisionTransformer(seen, Layers(rngs))), RENAMED_IN_VISION_TRANSFORMERS


def torch_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a parameter's shape in PyTorch."""
    return tuple(np.array(shape)[np.argsort(import_axes(name, len(shape)))].tolist())


@pytest.mark.parametrize("name", [*CLIPS, *DINOS, "facebook/dinov2-small", "facebook/dinov2-base"])
def test_shapes_of_published_models_equal_transformers(name):
    config = config_of(name)
    with torch.device("meta"):
        state = model_of(config).state_dict()
    network, renames = network_of(config)
    theirs = {today: tuple(value.shape) for stored, value in state.items() if (today := canonical(stored, renames))}
    ours = {torch_name(key): torch_shape(key, leaf.shape) for key, leaf in network.shapes.items()}
    assert ours == theirs


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_their_number_of_parameters(name):
    network, _ = network_of(config_of(name))
    assert sum(int(np.prod(leaf.shape)) for leaf in network.shapes.values()) == PARAMETERS[name]


def narrow(name: str) -> Any:
    """Returns the configuration of a model as deep as a published one and a few numbers wide."""
    if name not in CLIPS:
        config = config_of(name)
        return type(config)(**config.to_dict() | TINY)
    towers = {part: CLIPS[name][part] | TINY | {"intermediate_size": 8} for part in ("text_config", "vision_config")}
    return transformers.CLIPConfig(**towers, projection_dim=4)


@pytest.mark.parametrize("name", [*CLIPS, *DINOS, *SECONDS])
def test_names_in_published_files_are_understood(name, tmp_path):
    model_of(narrow(name)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        stored = set(file.keys())
    last = {"openai/clip-vit-base-patch32": "vision_model.encoder.layers.11.self_attn.out_proj.weight",
            "facebook/dino-vits16": "encoder.layer.11.attention.attention.query.bias",
            "facebook/dinov2-small": "encoder.layer.11.layer_scale2.lambda1",
            "facebook/dinov2-giant": "encoder.layer.39.mlp.weights_in.weight"}  # fmt: skip
    assert last.get(name) is None or last[name] in stored
    network, renames = network_of(config_of(name))
    assert {canonical(key, renames) for key in stored} - {None} == {torch_name(key) for key in network.shapes}


OLD = {  # what every configuration of an old release has
    "add_cross_attention": False, "bad_words_ids": None, "diversity_penalty": 0.0, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1,
    "pruned_heads": {}, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "tie_word_embeddings": True, "torchscript": False, "use_bfloat16": False, "dropout": 0.0, "return_dict": True,
    "id2label": {"0": "LABEL_0"}, "chunk_size_feed_forward": 0, "is_decoder": False,
}  # fmt: skip


def test_a_configuration_of_an_old_release_is_read():
    raw = {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": 768, "logit_scale_init_value": 2.6592,
        "text_config": OLD | {"eos_token_id": 2, "hidden_size": 768}, "text_config_dict": None,
        "vision_config": OLD | {"patch_size": 14}, "vision_config_dict": None,
    }  # fmt: skip
    expected = CLIPConfig(CLIPTextConfig(hidden_size=768, eos_token_id=2), CLIPVisionConfig(patch_size=14), 768)
    assert read_clip_config(raw, "config.json") == expected


def test_a_tower_that_is_described_twice_is_read_as_transformers_reads_it():
    raw = {
        "text_config": {"hidden_size": 768, "hidden_act": "gelu"}, "text_config_dict": {"hidden_size": 1024},
        "vision_config": {"patch_size": 14}, "vision_config_dict": {"patch_size": 16, "hidden_act": "gelu"},
    }  # fmt: skip
    theirs = transformers.CLIPConfig.from_dict(raw).to_dict()
    assert read_clip_config(raw, "config.json") == read_clip_config(theirs, "config.json")
