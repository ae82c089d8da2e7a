"""Which layers of a network get an adapter: presets and regular expressions over the names of layers."""

import re

from jaxbooth.params import ModuleDef
from jaxbooth.storage.patterns import first_matches

# UNet; CLIP; Z-Image; FLUX.2, whose single blocks have attention and feed-forward in the same two layers
ATTENTION = "|".join(
    (
        r"attn\d\.to_[qkv]|attn\d\.to_out\.0",
        r"self_attn\.[qkv]_proj|self_attn\.out_proj",
        r"attention\.to_[qkv]|attention\.to_out\.0",
        r"attn\.to_[qkv]|attn\.to_out\.0|attn\.add_[qkv]_proj|attn\.to_add_out",
        r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
    )
)
FEED_FORWARD = "|".join(
    (
        r"ff\.net\.0\.proj|ff\.net\.2|attentions\.\d+\.proj_(in|out)",
        r"mlp\.fc[12]",
        r"feed_forward\.w[123]",
        r"ff(_context)?\.linear_(in|out)",
    )
)
CONVOLUTION = r"conv[12]|conv_shortcut|(down|up)samplers\.0\.conv"  # of the UNet; transformers have none
PRESETS = {
    "attention": rf".*\.({ATTENTION})",
    "attention+ff": rf".*\.({ATTENTION}|{FEED_FORWARD})",
    "attention+ff+conv": rf".*\.({ATTENTION}|{FEED_FORWARD}|{CONVOLUTION})",
}


def target_layers(network: ModuleDef, component: str, targets: str) -> list[str]:
    """Returns the layers of a component that get an adapter, in name order.

    Args:
        targets: one of PRESETS, or a regular expression that must match all of `<component>.<layer>`.

    Raises:
        UserError: it is not a regular expression, or takes too long to match.
    """
    layers = sorted(name.removesuffix(".kernel") for name in network.shapes if name.endswith(".kernel"))
    names = tuple(f"{component}.{layer}" for layer in layers)
    if targets in PRESETS:
        return [layer for layer, name in zip(layers, names, strict=True) if re.fullmatch(PRESETS[targets], name)]
    matches = first_matches((targets,), names, f"--lora.targets (no preset: {', '.join(PRESETS)})")
    return [layer for layer, match in zip(layers, matches, strict=True) if match is not None]
