"""What the walk through a traced program speaks of: stored arrays, values that are computed from them, quantities."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

LARGE = 4  # a root counts as large from a quarter of the result on


@dataclass(eq=False)
class Buffer:
    """A stored array.

    Attributes:
        size: bytes that it takes; `read` are those that a reader moves. They differ for arguments, which are counted
            elsewhere, and for results that were stored in another's place.
        varies: with the rows of the batch.
        born, last: moments between which it lives; an argument is born when it is first read.
        owner: the parameter of which this is the gradient, if any.
        is_parameter: whether it is an argument that the partition rule places.
        is_picture: whether a convolution reads it.
    """

    size: int
    read: int
    varies: bool
    born: int | None = None
    last: int = 0
    owner: str | None = None
    is_parameter: bool = False
    is_picture: bool = False


class TracedValue(NamedTuple):
    """A value of the jaxpr: the buffers that it is computed from.

    Attributes:
        varies: whether the rows of the batch have a part in it.
        exclusive: the buffer that nothing else will read, so that a result can take its place.
        is_split: over the `tensor` axis.
        is_computed: by arithmetic, from what is stored.
        is_sole: whether nothing else has read the exclusive buffer before either.
    """

    roots: frozenset[Buffer] = frozenset()
    varies: bool = False
    exclusive: Buffer | None = None
    is_split: bool = False
    is_computed: bool = False
    is_sole: bool = True


class Cost(NamedTuple):
    """A quantity of the traced program: what varies with its rows, and what does not."""

    varying: float = 0
    fixed: float = 0

    def at(self, scale: float) -> float:
        """Returns the quantity at `scale` times the traced rows."""
        return self.varying * scale + self.fixed

    def plus(self, amount: float, varies: bool) -> "Cost":
        """Adds to one of the two."""
        return Cost(self.varying + amount * varies, self.fixed + amount * (not varies))


def large(roots: Iterable[Buffer], size: int) -> list[Buffer]:
    """Returns the roots that are large beside a result of `size` bytes."""
    return [root for root in roots if LARGE * root.read >= size]


def roots_of(values: Iterable[TracedValue]) -> frozenset[Buffer]:
    """Returns everything that values are computed from."""
    return frozenset().union(*(value.roots for value in values))


def nbytes(aval: Any) -> int:
    """Returns the bytes of an abstract value; PRNG keys take eight."""
    return aval.size * (getattr(aval.dtype, "itemsize", None) or 8) if hasattr(aval, "size") else 0


def timeline(buffers: Sequence[Buffer], end: int) -> np.ndarray:
    """Returns the bytes of the buffers that are alive at each moment up to `end`, (end + 2,) int64."""
    change = np.zeros(end + 2, np.int64)
    for buffer in buffers:
        if buffer.born is not None:
            change[buffer.born] += buffer.size
            change[buffer.last + 1] -= buffer.size
    return np.cumsum(change)
