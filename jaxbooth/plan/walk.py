"""What a traced program keeps in memory and moves, estimated from its jaxpr without a compiler.

XLA never stores most values of a jaxpr. The model of it used here, in three rules:

1. Matrix products, convolutions, gathers, concatenations and loops store their results. Reductions store theirs, which
   are small, and read whatever they reduce in one pass.
2. Element-wise and shape operations store nothing: whoever needs their result computes it again from what is stored,
   as long as that is one large array (a norm and an activation between two convolutions, a cast, a softmax).
3. With two or more large inputs, the result is stored in place of an input that nobody else reads (a convolution plus
   a skip connection), or else when a product or convolution needs it.

A stored array lives from its making to its last reader, in the order of the jaxpr. Sizes that depend on the rows of
the batch are kept apart, so that one trace serves every batch size.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Literal

from jaxbooth.plan.flops import CONV, DOT, ELEMENTS, equation_flops

LARGE = 4  # a root counts as large from a quarter of the result on
INLINED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold the body of a call
REDUCTIONS = ("reduce_", "arg", "cum")
STORED = (
    "dot_general", "conv_general_dilated", "concatenate", "gather", "scatter", "scatter-add", "sort", "random_bits",
    "random_split", "random_fold_in", "dynamic_update_slice", "while", "pallas_call", "custom_call", "ffi_call",
)  # fmt: skip


@dataclass(eq=False)
class Buffer:
    """A stored array.

    Attributes:
        size: bytes that it takes; `read` are those that a reader moves. They differ for arguments, which are counted
            elsewhere, and for results that were stored in another's place.
        varies: with the rows of the batch.
        owner: the parameter of which this is the gradient, if any.
    """

    size: int
    read: int
    varies: bool
    born: int = 0
    last: int = 0
    owner: str | None = None


class Value(NamedTuple):
    """A value of the jaxpr: the buffers that it is computed from.

    Attributes:
        exclusive: the buffer that only this value reads, so that a result can take its place.
    """

    roots: frozenset[Buffer] = frozenset()
    varies: bool = False
    exclusive: Buffer | None = None


class Amount(NamedTuple):
    """A quantity of the traced program: what varies with its rows, and what does not."""

    varying: float = 0
    fixed: float = 0

    def at(self, scale: float) -> float:
        """Returns the quantity at `scale` times the traced rows."""
        return self.varying * scale + self.fixed

    def plus(self, amount: float, varies: bool) -> "Amount":
        """Adds to one of the two."""
        return Amount(self.varying + amount * varies, self.fixed + amount * (not varies))


@dataclass
class Walk:
    """Goes through a jaxpr in its order."""

    buffers: list[Buffer] = field(default_factory=list)
    flops: dict[str, Amount] = field(default_factory=lambda: dict.fromkeys((DOT, CONV, ELEMENTS), Amount()))
    traffic: Amount = Amount()
    now: int = 0
    factor: int = 1  # repetitions of the loop that the walk is in

    def argument(self, aval: Any, varies: bool) -> Value:
        """Returns the value of an argument; its memory is not counted here."""
        return Value(frozenset([Buffer(0, nbytes(aval), varies)]), varies)

    def run(self, jaxpr: Any, arguments: Sequence[Value], wanted: Sequence[bool] | None = None) -> list[Value]:
        """Walks a jaxpr without constants and returns the values of its results."""
        wanted = wanted or [True] * len(jaxpr.outvars)
        needed = needed_equations(jaxpr, wanted)
        uses = Counter(var for equation, _ in needed for var in set_of(equation.invars))
        uses.update(var for var in jaxpr.outvars if not isinstance(var, Literal))
        known: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))

        def read(var: Any) -> Value:
            if isinstance(var, Literal):
                return Value()
            value = known.get(var, Value())
            return value if uses[var] <= 1 else value._replace(exclusive=None)

        for equation, asked in needed:
            operands = [read(var) for var in equation.invars]
            if equation.primitive.name in STORED:
                operands = [self.stored(value, var) for value, var in zip(operands, equation.invars, strict=True)]
                known.update((v, o) for v, o in zip(equation.invars, operands, strict=True) if not isinstance(v, Literal))
            known.update(zip(equation.outvars, self.apply(equation, operands, asked), strict=True))
        return [read(var) if want else Value() for var, want in zip(jaxpr.outvars, wanted, strict=True)]

    def apply(self, equation: Any, operands: list[Value], wanted: Sequence[bool]) -> list[Value]:
        """Returns the results of one equation."""
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            return self.loop(equation, operands)
        if name == "cond":  # the last branch is the one for platforms without a kernel of their own
            return self.run(params["branches"][-1].jaxpr, operands[1:], wanted)
        body = next((params[key] for key in INLINED if key in params), None)
        if body is not None and name not in STORED:
            return self.run(getattr(body, "jaxpr", body), operands, wanted)
        kind, flops = equation_flops(equation)
        self.flops[kind] = self.flops[kind].plus(flops * self.factor, any(operand.varies for operand in operands))
        if name in STORED or name.startswith(REDUCTIONS):
            return self.store(equation, operands)
        return [self.fuse(operands, nbytes(out.aval)) for out in equation.outvars]

    def store(self, equation: Any, operands: list[Value]) -> list[Value]:
        """Stores the results of an equation, after reading its operands."""
        varies = any(operand.varies for operand in operands)
        self.touch(operands)
        return [self.new(nbytes(out.aval), varies) for out in equation.outvars]

    def fuse(self, operands: list[Value], size: int) -> Value:
        """Returns a value that is computed where it is needed, or stored in place of an operand."""
        roots = frozenset().union(*(operand.roots for operand in operands))
        varies = any(operand.varies for operand in operands)
        own = [operand.exclusive for operand in operands if operand.exclusive]
        if len(large(roots, size)) < 2:
            return Value(roots, varies, own[0] if own else None)
        if not own:
            return Value(roots, varies)
        replaced = max(own, key=lambda buffer: buffer.read)
        self.touch([Value(roots - {replaced})])
        replaced.size = 0
        self.traffic = self.traffic.plus(-replaced.read * self.factor, replaced.varies)
        return self.new(size, varies)

    def stored(self, value: Value, var: Any) -> Value:
        """Stores a value that several large arrays are read for."""
        size = nbytes(var.aval)
        if len(large(value.roots, size)) < 2:
            return value
        self.touch([value])
        return self.new(size, value.varies)

    def loop(self, equation: Any, operands: list[Value]) -> list[Value]:
        """Walks the body of a scan once, inside of the time in which everything that it is given lives."""
        params = equation.params
        carried, length = params["num_carry"], params["length"]
        operands = [self.stored(value, var) for value, var in zip(operands, equation.invars, strict=True)]
        self.factor *= length
        inner = [operand._replace(exclusive=None) for operand in operands]
        results = self.run(params["jaxpr"].jaxpr, inner)
        self.touch(results[:carried], moves=False)
        self.factor //= length
        self.touch(operands, moves=False)
        varies = [result.varies for result in results]
        return [self.new(nbytes(out.aval), v) for out, v in zip(equation.outvars, varies, strict=True)]

    def new(self, size: int, varies: bool) -> Value:
        """Makes a buffer."""
        buffer = Buffer(size, size, varies, self.now, self.now)
        self.buffers.append(buffer)
        self.traffic = self.traffic.plus(size * self.factor, varies)
        return Value(frozenset([buffer]), varies, buffer)

    def touch(self, values: Iterable[Value], moves: bool = True) -> None:
        """Reads everything that values are computed from; time goes on."""
        self.now += 1
        for buffer in frozenset().union(*(value.roots for value in values)):
            buffer.last = self.now
            if moves:
                self.traffic = self.traffic.plus(buffer.read * self.factor, buffer.varies)


def large(roots: Iterable[Buffer], size: int) -> list[Buffer]:
    """Returns the roots that are large beside a result of `size` bytes."""
    return [root for root in roots if LARGE * root.read >= size]


def nbytes(aval: Any) -> int:
    """Returns the bytes of an abstract value; PRNG keys take eight."""
    return aval.size * (getattr(aval.dtype, "itemsize", None) or 8) if hasattr(aval, "size") else 0


def set_of(invars: Sequence[Any]) -> set[Any]:
    """Returns the variables among operands."""
    return {var for var in invars if not isinstance(var, Literal)}


def needed_equations(jaxpr: Any, wanted: Sequence[bool]) -> list[tuple[Any, list[bool]]]:
    """Returns the equations that lead to a wanted result, each with which of its own results are wanted."""
    alive = {var for var, want in zip(jaxpr.outvars, wanted, strict=True) if want and not isinstance(var, Literal)}
    found = []
    for equation in reversed(jaxpr.eqns):
        asked = [var in alive for var in equation.outvars]
        if any(asked) or equation.effects:
            found.append((equation, asked))
            alive |= set_of(equation.invars)
    return found[::-1]


def timeline(buffers: Sequence[Buffer], chosen: Iterable[bool], end: int) -> np.ndarray:
    """Returns the bytes of the chosen buffers that are alive at each moment, (end + 2,) int64."""
    change = np.zeros(end + 2, np.int64)
    for buffer, is_chosen in zip(buffers, chosen, strict=True):
        if is_chosen:
            change[buffer.born] += buffer.size
            change[buffer.last + 1] -= buffer.size
    return np.cumsum(change)
