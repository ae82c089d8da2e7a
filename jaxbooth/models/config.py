"""Model configurations: typed views of the checkpoint's own `config.json`.

A key that jaxbooth does not implement is accepted while it holds its neutral value and refused otherwise, so that a
checkpoint is never run as something that it is not. Every other value has a type and a range, and values that must fit
each other are checked together, before anything is built from them.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from jaxbooth.errors import UserError
from jaxbooth.models.encoder_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, Dinov2Config, ViTConfig
from jaxbooth.models.flux2_config import Flux2Config
from jaxbooth.models.qwen3_config import Qwen3Config
from jaxbooth.models.unet_config import UNetConfig
from jaxbooth.models.vae_config import Flux2VAEConfig, VAEConfig
from jaxbooth.models.zimage_config import ZImageConfig
from jaxbooth.storage.paths import ascii_repr
from jaxbooth.storage.typed import json_equal, json_keys, validate

T = TypeVar("T")

# Keys whose listed value is what jaxbooth implements, and keys that carry no mathematics. Others must be off.
NEUTRAL: dict[type, dict[str, Any]] = {
    UNetConfig: {
        "act_fn": "silu",
        "addition_embed_type_num_heads": 64,
        "attention_type": "default",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dropout": 0.0,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "resnet_out_scale_factor": 1.0,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
    },
    VAEConfig: {"act_fn": "silu"},
    Flux2VAEConfig: {"act_fn": "silu"},
    ZImageConfig: {},
    Flux2Config: {"patch_size": 1},
    CLIPTextConfig: {"attention_dropout": 0.0, "dropout": 0.0, "model_type": "clip_text_model", "pruned_heads": {}},
    CLIPVisionConfig: {"attention_dropout": 0.0, "dropout": 0.0, "model_type": "clip_vision_model", "pruned_heads": {}},
    ViTConfig: {"model_type": "vit", "pruned_heads": {}},
    Dinov2Config: {"model_type": "dinov2", "pruned_heads": {}},
    Qwen3Config: {"attention_dropout": 0.0, "hidden_act": "silu", "model_type": "qwen3"},
}
INFORMATIVE = {
    "architectures", "bos_token_id", "pad_token_id", "dtype", "torch_dtype", "initializer_factor",
    "initializer_range", "transformers_version", "return_dict", "use_cache", "id2label", "label2id",
    "chunk_size_feed_forward", "tie_word_embeddings", "eos_token_id",
    # of a sliding window, which `use_sliding_window` switches
    "max_window_layers", "sliding_window",
    # of generating text, which old configurations of every model have
    "diversity_penalty", "encoder_no_repeat_ngram_size", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "repetition_penalty",
    "temperature", "top_k", "top_p", "typical_p",
    # of training a vision transformer, and of heads that jaxbooth leaves out
    "attention_probs_dropout_prob", "hidden_dropout_prob", "drop_path_rate", "layerscale_value", "use_mask_token",
    "encoder_stride", "pooler_act", "pooler_output_size", "apply_layernorm", "out_features", "out_indices",
    "reshape_hidden_states", "stage_names",
}  # fmt: skip


def is_off(value: Any) -> bool:
    """Whether a value switches something off: null, false, or a list of nothing else. 0 may be a number that counts."""
    values = value if isinstance(value, list | tuple) else [value]
    return all(entry is None or entry is False for entry in values)


def read_config(config_type: type[T], raw: Mapping[str, Any], source: str) -> T:
    """Builds `config_type` from a checkpoint's JSON object.

    Args:
        raw: the parsed `config.json`.
        source: the file's name, for messages.

    Raises:
        UserError: a key that jaxbooth does not implement holds a value other than its neutral one, or a value is of
            another type, out of range, or does not fit the others.
    """
    known = json_keys(config_type)
    neutral = NEUTRAL[config_type]
    for key, value in raw.items():
        if key in known or key in INFORMATIVE or key.startswith("_"):
            continue
        if not (json_equal(value, neutral[key]) if key in neutral else is_off(value)):
            name = ascii_repr(key).strip("'")
            raise UserError(
                f"{source}: {name} = {ascii_repr(value)} is not supported; this model needs code that jaxbooth lacks."
            )
    return validate(config_type, raw, source)


def architectures(raw: Mapping[str, Any], source: str) -> list[str]:
    """Returns the names of classes that a `config.json` says it is for.

    Raises:
        UserError: it is no list of names.
    """
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{source}: architectures = {ascii_repr(names)} is not valid: expected a list of names.")
    return names


def read_clip_config(raw: Mapping[str, Any], source: str) -> CLIPConfig:
    """Reads the `config.json` of a whole CLIP; the width of its features is that of the outermost `projection_dim`.

    Raises:
        UserError: as `read_config`, or an encoder's part is no JSON object.
    """

    def encoder(config_type: type[T], part: str) -> T:
        repeated = raw.get(f"{part}_dict")  # in old files; where it is, transformers takes all values from there
        values = raw.get(part, {}) if repeated is None else repeated
        if not isinstance(values, dict):
            raise UserError(f"{source}: {part} is not a JSON object; download or export the model again.")
        return read_config(config_type, values, f"{source}: {part}")

    encoders = {"text": encoder(CLIPTextConfig, "text_config"), "vision": encoder(CLIPVisionConfig, "vision_config")}
    return validate(CLIPConfig, {"projection_dim": raw.get("projection_dim", 512)} | encoders, source)
