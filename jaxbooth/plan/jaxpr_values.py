"""The data of `jaxpr_memory`: stored arrays, traced values that are computed from them, and costs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

LARGE_RATIO = 4  # a buffer counts as large from a quarter of the result on


@dataclass(eq=False)
class Buffer:
    """A stored array.

    Attributes:
        size: bytes that it takes. It is not `read` for arguments, which are counted elsewhere, and for results that are
            stored in place of another buffer.
        read: bytes that a reader moves.
        per_example: whether its size grows with the batch.
        first_use, last_use: times between which it lives; an argument lives from its first reader on.
        gradient_of: the parameter of which this is the gradient, if any.
        is_parameter: whether it is an argument that the partition rule places.
        is_conv_input: whether a convolution reads it.
    """

    size: int
    read: int
    per_example: bool
    first_use: int | None = None
    last_use: int = 0
    gradient_of: str | None = None
    is_parameter: bool = False
    is_conv_input: bool = False


class TracedValue(NamedTuple):
    """A value of the jaxpr: the buffers that it is computed from.

    Attributes:
        per_example: whether the examples of the batch have a part in it.
        reusable: the buffer that nothing else will read, so that a result can take its place.
        is_split: over the `tensor` axis.
        is_computed: by arithmetic, from what is stored.
        is_only_reader: whether nothing else has read the reusable buffer before either.
    """

    buffers: frozenset[Buffer] = frozenset()
    per_example: bool = False
    reusable: Buffer | None = None
    is_split: bool = False
    is_computed: bool = False
    is_only_reader: bool = True


class Cost(NamedTuple):
    """FLOPs or bytes of a traced program: what grows with its batch, and what does not."""

    per_example: float = 0
    constant: float = 0

    def at(self, scale: float) -> float:
        """Returns the cost at `scale` times the traced batch."""
        return self.per_example * scale + self.constant

    def plus(self, amount: float, per_example: bool) -> "Cost":
        """Returns the cost with an amount added to one of its two parts."""
        if per_example:
            return Cost(self.per_example + amount, self.constant)
        return Cost(self.per_example, self.constant + amount)


def large_buffers(buffers: Iterable[Buffer], size: int) -> list[Buffer]:
    """Returns the buffers that are large beside a result of `size` bytes."""
    return [buffer for buffer in buffers if LARGE_RATIO * buffer.read >= size]


def buffers_of(values: Iterable[TracedValue]) -> frozenset[Buffer]:
    """Returns every buffer that values are computed from."""
    return frozenset().union(*(value.buffers for value in values))


def nbytes(aval: Any) -> int:
    """Returns the bytes of an abstract value; PRNG keys take eight."""
    return aval.size * (getattr(aval.dtype, "itemsize", None) or 8) if hasattr(aval, "size") else 0


def live_bytes(buffers: Sequence[Buffer], end: int) -> np.ndarray:
    """Returns the bytes of the buffers that are alive at each time up to `end`, (end + 2,) int64."""
    change = np.zeros(end + 2, np.int64)
    for buffer in buffers:
        if buffer.first_use is not None:
            change[buffer.first_use] += buffer.size
            change[buffer.last_use + 1] -= buffer.size
    return np.cumsum(change)
