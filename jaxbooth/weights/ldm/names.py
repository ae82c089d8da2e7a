"""The names that single-file checkpoints (CompVis LDM, Stability SGM) give to the tensors of a diffusers folder.

Both sides name the same layers in the same order, so every name follows from the configuration: LDM numbers the
blocks of the UNet in one row, counts the VAE's way up from the top, and stores SD 2.x's and XL's OpenCLIP text encoders
with query, key and value in one matrix. Names go in as diffusers writes them, with or without `.weight` or `.bias`.
"""

import re

from jaxbooth.models.config import UNetConfig, VAEConfig

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_INNER = {"resnets": UNET_RESNET, "attentions": {}, "downsamplers": {"conv": "op"}, "upsamplers": {}}
UNET_PLACE = re.compile(r"(down_blocks|mid_block|up_blocks)(?:\.(\d+))?\.(\w+s)\.(\d+)(.*)")

VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_RULES = (
    (r"mid_block\.resnets\.(\d+)", lambda config, index: f"mid.block_{index + 1}"),
    (r"mid_block\.attentions\.0", lambda config: "mid.attn_1"),
    (r"down_blocks\.(\d+)", lambda config, level: f"down.{level}"),
    (r"up_blocks\.(\d+)", lambda config, level: f"up.{len(config.block_out_channels) - 1 - level}"),
    (r"resnets\.(\d+)", lambda config, index: f"block.{index}"),
    (r"(downsample|upsample)rs\.0", lambda config, layer_type: layer_type),
    (r"conv_shortcut", lambda config: "nin_shortcut"),
    (r"conv_norm_out", lambda config: "norm_out"),
)

OPENCLIP_RULES = (
    (r"encoder\.layers\.", "transformer.resblocks."),
    (r"self_attn\.(?:q|k|v)_proj\.", "attn.in_proj_"),
    (r"self_attn\.", "attn."),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"embeddings\.token_embedding", "token_embedding"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"final_layer_norm", "ln_final"),
    (r"text_projection\.weight", "text_projection"),
)


def unet_key(name: str, config: UNetConfig) -> str:
    """Returns the LDM name of a UNet's tensor or module, without the `model.diffusion_model.` prefix.

    Raises:
        ValueError: diffusers gives no such name to a part of this UNet.
    """
    for end, key in UNET_ENDS.items():
        if name == end or name.startswith(f"{end}."):
            return key + name[len(end) :]
    match = UNET_PLACE.fullmatch(name)
    if not match or match[3] not in UNET_INNER:
        raise ValueError(f"{name} is no part of a Stable Diffusion UNet")
    side, block, layer_type, layer, rest = match.groups()
    place = unet_place(side, int(block or 0), layer_type, int(layer), config)
    word, dot, tail = rest.removeprefix(".").partition(".")
    return f"{place}.{UNET_INNER[layer_type].get(word, word)}{dot}{tail}" if word else place


def unet_place(side: str, block: int, layer_type: str, layer: int, config: UNetConfig) -> str:
    """Returns where LDM keeps a layer: the block's number in its row, then the layer's place in that block.

    A level is `layers_per_block` blocks and one for the downsampler on the way down, and one block more on the way
    up, whose upsampler is the last entry of the level's last block.
    """
    if side == "mid_block":
        return f"middle_block.{2 * layer if layer_type == 'resnets' else 1}"
    counts = config.layers if side == "down_blocks" else config.layers[::-1]
    layers, first = counts[block], sum(count + 1 for count in counts[:block])
    if side == "down_blocks":
        position = 1 + first + (layers if layer_type == "downsamplers" else layer)
        return f"input_blocks.{position}.{int(layer_type == 'attentions')}"
    attends = config.up_block_types[block].startswith("CrossAttn")
    slot = {"resnets": 0, "attentions": 1, "upsamplers": 1 + attends}[layer_type]
    return f"output_blocks.{first + (layers if layer_type == 'upsamplers' else layer)}.{slot}"


def vae_key(name: str, config: VAEConfig) -> str:
    """Returns the LDM name of a VAE's tensor, without the `first_stage_model.` prefix.

    The weights of `mid.attn_1` are 1x1 convolutions there (o, i, 1, 1) and linear layers (o, i) in diffusers.
    """
    if ".attentions." in name:
        for ours, theirs in VAE_ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    for pattern, replace in VAE_RULES:
        name = re.sub(
            pattern,
            lambda match, replace=replace: replace(
                config, *(int(group) if group.isdigit() else group for group in match.groups())
            ),
            name,
        )
    return name


def clip_key(name: str) -> str:
    """Returns the name in transformers' CLIP text encoder, to be put behind `...transformer.`, as SD 1.x stores it."""
    return f"text_model.{name.removeprefix('text_model.')}"


def openclip_key(name: str) -> str:
    """Returns the name in an OpenCLIP text encoder, to be put behind `...model.`, as SD 2.x and XL's second store it.

    Query, key and value share one name: they are stacked along the first axis, in this order. `text_projection` is
    stored (inputs, outputs), transposed to the linear layer's weight.
    """
    name = name.removeprefix("text_model.")
    for pattern, replacement in OPENCLIP_RULES:
        name = re.sub(pattern, replacement, name)
    return name
