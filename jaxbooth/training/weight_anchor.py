"""The weight anchor: how far everything trained has moved from the base model's weights, as one squared norm.

Lambda times this pulls the weights back (L2-SP, Li et al. 2018, arXiv 1802.01483, where theta_0 is the pretrained
model). Of a LoRA it is the squared Frobenius norm of what merging it adds to each kernel, without forming that (but for
LoHa). The embeddings of placeholder tokens have no place in the base model, and are left out.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Float

from jaxbooth.models.adapter_kinds import MAGNITUDE, LoraSpec
from jaxbooth.models.lora import layer_parts, lora_layers, output_norms
from jaxbooth.models.low_rank import LORA_A, LORA_B, as_matrix, output_squares
from jaxbooth.models.quantization import full_kernel
from jaxbooth.params import KERNEL_SCALE, Array, Params
from jaxbooth.training.reference import ANCHOR

WEIGHT_ANCHOR = "weight_anchor"  # the metric


def squared_change(params: Params, frozen: Mapping[str, Params], lora: LoraSpec | None) -> Float[Array, ""]:
    """Returns the squared norm of what training changed in the base model's weights, in all components together.

    Args:
        params: `<component>.<parameter>` of everything trained, float32.
        frozen: component -> frozen parameters, `ANCHOR` among them; DoRA reads its kernels here.
        lora: what the adapters share, if there are any.
    """
    total = jnp.zeros((), jnp.float32)
    for name, base in frozen.get(ANCHOR, {}).items():
        total += jnp.sum(jnp.square(params[name] - base))
    if lora is None:
        return total
    for layer in lora_layers(params):
        parts = layer_parts(params, layer)
        scale = lora.scale_of(parts)
        if not lora.dora:
            total += scale**2 * lora.formulas.squared_norm(parts)
            continue
        component, name = layer.split(".", 1)
        values = frozen[component]
        kernel = as_matrix(full_kernel(values[f"{name}.kernel"], values.get(f"{name}.kernel{KERNEL_SCALE}")))
        total += dora_change(kernel, as_matrix(parts[LORA_A]), as_matrix(parts[LORA_B]), parts[MAGNITUDE], scale)
    return total


def dora_change(
    kernel: Float[Array, "rows outputs"],
    down: Float[Array, "rows rank"],
    up: Float[Array, "rank outputs"],
    magnitude: Float[Array, " outputs"],
    scale: float,
) -> Float[Array, ""]:
    """Returns ||m V / ||V|| - W||^2 with V = W + s A B, summed over outputs.

    With r = m / ||V|| and d = s A B an output's column is r (w + d) - w = (r - 1) w + r d, and its squared norm
    (r - 1)^2 ||w||^2 + 2 r (r - 1) <w, d> + r^2 ||d||^2: each part is small where the change is.
    """
    inner = scale * jnp.sum(jnp.matmul(down.T, kernel, precision="highest") * up, axis=0)
    change = scale**2 * output_squares(down, up)
    square = jnp.square(output_norms(kernel))
    norm = jnp.sqrt(square + 2 * inner + change)
    excess = (magnitude - norm) / norm
    ratio = 1 + excess
    return jnp.sum(excess**2 * square + 2 * ratio * excess * inner + ratio**2 * change)
