"""What a backward pass keeps of the forward pass, and what it computes again (gradient checkpointing), by name."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from flax import nnx

Remat = Literal["none", "dots", "attention", "blocks"]
REMATS: tuple[Remat, ...] = get_args(Remat)  # from the fastest to the one that keeps least

# Matrix products and convolutions, and the kernels of attention: what costs much and fills little.
PRODUCTS = {"dot_general", "conv_general_dilated", "pallas_call", "dot_product_attention_fwd_wrapper"}


def recomputed(function: Callable[..., Any], remat: Remat, is_attention: bool) -> Callable[..., Any]:
    """Returns a function whose intermediate results are kept as the policy says.

    * none: whatever the compiler wants.
    * dots: results of products; norms, activations and sums are computed again, which costs no FLOPs to speak of.
    * attention: of transformer blocks nothing but their input; of ResNets everything.
    * blocks: of no block more than its input, for a third more FLOPs.
    """
    if remat == "none" or (remat == "attention" and not is_attention):
        return function
    return jax.checkpoint(function, policy=keeps_products if remat == "dots" else None)


@functools.partial(jax.jit, static_argnames=("remat", "is_attention"))
def call(block: nnx.Module, *args: Any, remat: Remat, is_attention: bool) -> Any:
    """Calls a block; what `remat` does not keep of it is computed again in the backward pass.

    Blocks that are alike are traced, differentiated and lowered once.
    """
    return recomputed(type(block).__call__, remat, is_attention)(block, *args)


def keeps_products(primitive: Any, *_: Any, **__: Any) -> bool:
    """Tells whether the results of a primitive are kept."""
    return primitive.name in PRODUCTS
