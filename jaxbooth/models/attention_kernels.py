"""The kernels that attention is computed by. All map (batch, length, heads, width) arrays alike; they differ in memory.

`jaxbooth.models.attention` chooses among them. Every kernel works on what one device holds. Keys and values may have
fewer heads than queries, each for as many neighbours; those at positions from `lengths` on are padding, which no query
sees.
"""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jaxtyping import Float, Int

from jaxbooth.params import Array

KernelName = Literal["xla", "chunked", "splash", "cudnn"]

Queries = Float[Array, "b t heads d"]  # results, too
Sources = Float[Array, "b s kv_heads d"]  # keys and values
Lengths = Int[Array, " b"]  # keys of each row that are not padding, 1 or more

QUERY_CHUNK = 512
SPLASH_BLOCK = 512  # queries and keys that the TPU kernel holds at once
FUSED_LENGTH, FUSED_WIDTH = 4096, 128  # of keys and heads up to which one backward kernel has room on every TPU
CUDNN_MULTIPLE = 8
TPUS_WITHOUT_SPLASH = ("TPU v2", "TPU v3")  # their compiler refuses bfloat16 products in kernels


def xla_attention(
    query: Queries, key: Sources, value: Sources, lengths: Lengths | None = None, is_causal: bool = False
) -> Queries:
    """Builds all scores, in float32: length x source_length of them for every head."""
    return jax.nn.dot_product_attention(query, key, value, is_causal=is_causal, key_value_seq_lengths=lengths)


def chunked_attention(
    query: Queries, key: Sources, value: Sources, lengths: Lengths | None = None, longest: int = QUERY_CHUNK
) -> Queries:
    """Takes query rows a chunk at a time; the backward pass recomputes each chunk's scores.

    Memory grows with chunk x source_length and not with length x source_length. The gradients of key and value, to
    which every chunk adds, are float32.

    Args:
        longest: chunks have as many rows as divide the length, at most this many.
    """
    batch, length, heads, width = query.shape
    chunk = next(size for size in range(min(longest, length), 0, -1) if length % size == 0)
    chunks = jnp.moveaxis(query.reshape(batch, length // chunk, chunk, heads, width), 1, 0)
    sources = key.astype(jnp.float32), value.astype(jnp.float32)

    @jax.checkpoint
    def attend(chunk: Array) -> Array:
        key, value = (source.astype(chunk.dtype) for source in sources)
        return xla_attention(chunk, key, value, lengths)

    return jnp.moveaxis(jax.lax.map(attend, chunks), 0, 1).reshape(query.shape)


def tpu_splash_attention(
    query: Queries, key: Sources, value: Sources, lengths: Lengths | None = None, interpret: bool = False
) -> Queries:
    """JAX's flash attention for TPUs; no scores leave the chip.

    The kernel takes (heads, length, width), has no scale, and wants lengths in whole blocks: queries come scaled, and
    padding and the rows that fill the last block are given to another segment, which no query sees.

    Args:
        interpret: run the kernel as plain JAX, on any platform.
    """
    length, source_length = query.shape[1], key.shape[1]
    query, key, value = (to_blocks(x) for x in (query * query.shape[-1] ** -0.5, key, value))
    padded, source_padded = query.shape[2], key.shape[2]
    segments = None
    if lengths is not None or (padded, source_padded) != (length, source_length):
        seen = jnp.full(len(query), source_length) if lengths is None else lengths
        is_filling = jnp.arange(source_padded) >= seen[:, None]
        queries = jnp.zeros((len(query), padded), jnp.int32)
        segments = splash_attention.SegmentIds(queries, is_filling.astype(jnp.int32))
    everything = splash_attention.FullMask((padded, source_padded))
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([everything] * query.shape[1]),
        block_sizes=splash_blocks(source_padded, query.shape[-1]),
        interpret=interpret,
    )
    out = jax.vmap(kernel)(query, key, value, segments)
    return out[:, :, :length].swapaxes(1, 2)


def to_blocks(x: Queries) -> Float[Array, "b heads t_padded d"]:
    """Swaps length and heads and fills the last block with zeros."""
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % SPLASH_BLOCK), (0, 0)))


def splash_blocks(source_length: int, width: int) -> splash_attention.BlockSizes:
    """Returns what the kernels hold at once.

    One backward kernel computes the scores once for all three gradients. It writes the queries' gradient once for every
    block of keys, to be added up after it, and so is given two large ones. Where those have no room on the chip, there
    is a kernel for the queries' gradient and another for the others, and each computes the scores.

    Args:
        source_length: in whole blocks.
        width: of a head.
    """
    size, half = SPLASH_BLOCK, source_length // 2
    sizes = functools.partial(splash_attention.BlockSizes, block_q=size, block_kv=size, block_q_dkv=size)
    if source_length <= FUSED_LENGTH and width <= FUSED_WIDTH:
        part = math.gcd(half, size)
        return sizes(block_kv_dkv=half, block_kv_dkv_compute=part, use_fused_bwd_kernel=True)
    return sizes(block_kv_dkv=size, block_q_dq=size, block_kv_dq=size)


def cudnn_attention(query: Queries, key: Sources, value: Sources, lengths: Lengths | None = None) -> Queries:
    """NVIDIA's flash attention. It wants sources in eights: 77 tokens of text become 80, of which 77 are seen."""
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    (batch, length), source_length = query.shape[:2], key.shape[1]
    missing = -source_length % CUDNN_MULTIPLE
    if lengths is None and not missing:
        return attend(query, key, value)
    if lengths is None:
        seen = jnp.full(batch, source_length, jnp.int32)
    else:  # what the kernel leaves in the gradients of padding is nobody's business: here they are 0
        seen, is_seen = lengths.astype(jnp.int32), jnp.arange(source_length) < lengths[:, None]
        key, value = (jnp.where(is_seen[:, :, None, None], x, 0) for x in (key, value))
    key, value = (jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) for x in (key, value))
    queries = jnp.full(batch, length, jnp.int32)
    return attend(query, key, value, query_seq_lengths=queries, key_value_seq_lengths=seen)


def has_splash() -> bool:
    """Tells whether the mesh that the program is traced for can run `tpu_splash_attention`; no mesh counts as a yes."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device is None or device.device_kind not in TPUS_WITHOUT_SPLASH


def has_cudnn() -> bool:
    """Tells whether this process can trace `cudnn_attention`: JAX asks the library for its version already then."""
    return traces_cudnn(64)


def cudnn_widest() -> int:
    """Returns the widest heads that `cudnn_attention` takes on this process's GPUs: 256 from Hopper on, 128 before."""
    return 256 if traces_cudnn(256) else 128


def traces_cudnn(width: int) -> bool:
    """Tells whether JAX lets `cudnn_attention` have heads of a width."""
    probe = jax.ShapeDtypeStruct((1, 128, 1, width), jnp.bfloat16)
    try:
        jax.eval_shape(cudnn_attention, probe, probe, probe)
    except RuntimeError:  # "cuDNN is not detected", or this GPU is too old for it
        return False
    return True


KERNELS = {"xla": xla_attention, "chunked": chunked_attention, "splash": tpu_splash_attention, "cudnn": cudnn_attention}
PLATFORM_KERNELS = {
    "splash": has_splash,
    "cudnn": has_cudnn,
}  # of one platform, and whether they can be traced here
