"""Adapters of layers that one file splits and another keeps in one matrix: exact in both ways.

With k layers W_1 ... W_k of the same inputs in one matrix W (their outputs one after another), adapters A_i, B_i of
rank r are one adapter of W: A is their A_i one above another (k r, in), B has the B_i on its diagonal (k outputs, k r).
Other trainers adapt W itself: then all W_i share A, and each has its rows of B.
"""

from collections.abc import Sequence

import numpy as np

from jaxbooth.weights.lora.adapters import Adapter


def fuse(parts: Sequence[Adapter | None], widths: Sequence[int]) -> Adapter:
    """Returns the adapter of a fused matrix, with alpha = rank; its component and module are the first part's.

    Args:
        parts: the adapter of each layer, or None for a layer that has none; not all of them.
        widths: outputs of each layer.
    """
    adapters = [None if part is None else part.with_alpha(part.rank) for part in parts]
    rank = sum(adapter.rank for adapter in adapters if adapter)
    lora_b = np.zeros((sum(widths), rank), np.float32)
    row, column = 0, 0
    for adapter, width in zip(adapters, widths, strict=True):
        if adapter:
            lora_b[row : row + width, column : column + adapter.rank] = adapter.lora_b
            column += adapter.rank
        row += width
    present = [adapter for adapter in adapters if adapter]
    magnitudes = [adapter.magnitude for adapter in present if adapter.magnitude is not None]
    return present[0]._replace(
        lora_a=np.concatenate([adapter.lora_a for adapter in present]),
        lora_b=lora_b,
        magnitude=np.concatenate(magnitudes) if magnitudes else None,
        alpha=float(rank),
    )


def can_fuse(parts: Sequence[Adapter | None]) -> bool:
    """Whether a fused matrix can have these adapters: a DoRA of some layers alone has no magnitudes for the others."""
    return all(parts) or not any(part and part.magnitude is not None for part in parts)


def split(fused: Adapter, modules: Sequence[str], widths: Sequence[int]) -> list[Adapter]:
    """Returns the adapters of the layers of a fused matrix.

    The blocks of a block-diagonal B get the rank that they have, and a layer without a block has no adapter (but for a
    DoRA, whose magnitude it needs). Everything else is an adapter whose A the layers share.

    Args:
        modules: the layers, in the order of their outputs.
        widths: outputs of each.
    """
    ends = np.cumsum(widths)[:-1]
    blocks = np.split(fused.lora_b, ends)
    magnitudes = [None] * len(modules) if fused.magnitude is None else np.split(fused.magnitude, ends)
    adapters = []
    for module, block, columns, magnitude in zip(modules, blocks, block_columns(blocks), magnitudes, strict=True):
        if not len(columns) and magnitude is None:
            continue
        kept = columns if len(columns) else np.arange(fused.rank)
        alpha = fused.alpha * len(kept) / fused.rank  # alpha / rank stays what it was
        adapters.append(Adapter(fused.component, module, fused.lora_a[kept], block[:, kept], magnitude, alpha))
    return adapters


def block_columns(blocks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the columns of B that each of its row blocks uses: its own if B is block-diagonal, else all of them."""
    rank, count = blocks[0].shape[1], len(blocks)
    is_used = np.array([np.any(block != 0, axis=0) for block in blocks])  # (blocks, rank)
    if rank % count == 0:
        columns = np.arange(rank).reshape(count, -1)
        if not any(np.delete(is_used[:, own], index, axis=0).any() for index, own in enumerate(columns)):
            return list(columns)
    if is_used.any() and (is_used.sum(axis=0) <= 1).all():
        return [np.flatnonzero(used) for used in is_used]
    return [np.arange(rank)] * count


def swap_halves(adapter: Adapter) -> Adapter:
    """Returns the adapter of a layer whose outputs lie with their halves the other way round; it is its own inverse."""
    lora_b = np.concatenate(np.split(adapter.lora_b, 2)[::-1])
    magnitude = None if adapter.magnitude is None else np.concatenate(np.split(adapter.magnitude, 2)[::-1])
    return adapter._replace(lora_b=lora_b, magnitude=magnitude)
