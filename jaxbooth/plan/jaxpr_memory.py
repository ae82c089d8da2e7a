"""What a traced program keeps in memory, computes and moves, estimated from its jaxpr without a compiler.

XLA never stores most values of a jaxpr. The model of it used here, in four rules:

1. Matrix products, convolutions, gathers, concatenations, kernels and loops store their results. Reductions store
   theirs, which are small, and read whatever they reduce in one pass.
2. Element-wise and shape operations store nothing: whoever needs their result computes it again from what is stored,
   as long as that is one large array (a norm and an activation between two convolutions, a cast, a softmax).
3. With two or more large inputs, the result is stored in place of an input that nobody else reads (a convolution plus
   a skip connection), or else when a product or convolution needs it; in the narrower type, if it is cast at once.
4. A convolution also stores the picture that it reads, if that is computed: it is laid out anew, with its padding.

A CPU reads less through: products store whatever they read, and what several equations read is computed once.

A stored array lives from its making to its last reader, in the order of the jaxpr. Sizes that depend on the rows of
the batch are kept apart, so that one trace serves every batch size.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import Literal

from jaxbooth.plan.flops import ARITHMETIC, CONV, DOT, KERNEL, KINDS, equation_flops, halo_flops
from jaxbooth.plan.jaxpr_values import LARGE, Buffer, Cost, TracedValue, large, nbytes, roots_of

INLINED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold the body of a call
REDUCTIONS = ("reduce_", "arg", "cum")
STORED = (
    DOT, CONV, KERNEL, "concatenate", "gather", "scatter", "scatter-add", "sort", "random_bits", "random_split",
    "random_fold_in", "dynamic_update_slice", "while", "custom_call", "ffi_call",
)  # fmt: skip
MOVES = ("transpose", "rev", "pad", "convert_element_type")  # that a CPU's products do not read through
LANES = 128  # of a TPU's registers: the last dimension of what a kernel takes and gives fills whole ones


@dataclass
class JaxprAnalysis:
    """Goes through a jaxpr in its order.

    Attributes:
        platform: tpu, cuda or cpu, which chooses among the branches of `jax.lax.platform_dependent`.
        tensor: parts that split products are cut into.
        now: moment; it moves on with every equation that reads what is stored.
        reduced: bytes of partial products that are summed over the `tensor` axis.
        halos: FLOPs that convolutions take more where a TPU splits their pictures; see `halo_flops`.
        equations: of the program, loops unrolled once.
    """

    platform: str
    tensor: int = 1
    buffers: list[Buffer] = field(default_factory=list)
    flops: dict[str, Cost] = field(default_factory=lambda: dict.fromkeys(KINDS, Cost()))
    traffic: Cost = field(default_factory=Cost)
    reduced: Cost = field(default_factory=Cost)
    halos: Cost = field(default_factory=Cost)
    equations: int = 0
    now: int = 0
    factor: int = 1  # repetitions of the loop that the walk is in

    def argument(self, aval: Any, varies: bool = False, size: int = 0, is_split: bool = False) -> TracedValue:
        """Returns the value of an argument.

        Args:
            size: bytes that it takes from its first reader to its last, beside its place among the arguments: of the
                parameters that FSDP gathers.
        """
        buffer = Buffer(size, nbytes(aval), varies, is_parameter=not varies)
        self.buffers.append(buffer)
        return TracedValue(frozenset([buffer]), varies, is_split=is_split)

    def run(self, jaxpr: Any, arguments: list[TracedValue], wanted: Sequence[bool] | None = None) -> list[TracedValue]:
        """Walks a jaxpr without constants and returns the values of its results."""
        wanted = wanted or [True] * len(jaxpr.outvars)
        needed = needed_equations(jaxpr, wanted)
        uses = Counter(var for equation, _ in needed for var in set_of(equation.invars))
        uses.update(var for var in jaxpr.outvars if not isinstance(var, Literal))
        left, known = Counter(uses), dict(zip(jaxpr.invars, arguments, strict=True))

        def read(var: Any) -> TracedValue:
            if isinstance(var, Literal):
                return TracedValue()
            value = known.get(var, TracedValue())
            if left[var]:
                return value._replace(exclusive=None)
            return value._replace(is_sole=value.is_sole and uses[var] == 1)

        for equation, asked in needed:
            left.subtract(set_of(equation.invars))
            before = [read(var) for var in equation.invars]
            operands = list(before)
            if equation.primitive.name in STORED:
                operands = [self.stored(v, var, equation) for v, var in zip(operands, equation.invars, strict=True)]
            results = self.apply(equation, operands, asked)  # a body may have stored some of `operands` for good
            changed = zip(equation.invars, before, operands, strict=True)
            known.update((var, new) for var, old, new in changed if new.roots != old.roots)
            if self.platform == "cpu":
                results = [self.shared(v, var, uses[var]) for v, var in zip(results, equation.outvars, strict=True)]
            known.update(zip(equation.outvars, results, strict=True))
        arguments[:] = [known[var] for var in jaxpr.invars]
        left.clear()
        return [read(var) if want else TracedValue() for var, want in zip(jaxpr.outvars, wanted, strict=True)]

    def apply(self, equation: Any, operands: list[TracedValue], wanted: Sequence[bool]) -> list[TracedValue]:
        """Returns the results of one equation; `operands` become what is stored of them, where it stores them."""
        name, params = equation.primitive.name, equation.params
        if name == "scan":
            return self.loop(equation, operands)
        if name == "cond":
            inner = operands[1:]
            results = self.run(chosen_branch(params, self.platform).jaxpr, inner, wanted)
            operands[1:] = inner
            return results
        body = next((params[key] for key in INLINED if key in params), None)
        if body is not None and name not in STORED:
            return self.run(getattr(body, "jaxpr", body), operands, wanted)
        is_split = self.count(equation, operands)
        if name in STORED or name.startswith(REDUCTIONS) or is_excerpt(equation):
            return self.store(equation, operands, is_split)
        return [self.fuse(equation, operands, out.aval, is_split) for out in equation.outvars]

    def count(self, equation: Any, operands: list[TracedValue]) -> bool:
        """Counts an equation's FLOPs and returns whether its result is split over `tensor`.

        A product of a split parameter with a split activation sums over the split dimension; any other product with
        a split factor keeps it.
        """
        kind, flops = equation_flops(equation)
        split, varies = [operand for operand in operands if operand.is_split], any(o.varies for o in operands)
        share = self.factor / self.tensor if split else self.factor
        self.flops[kind] = self.flops[kind].plus(flops * share, varies)
        self.halos = self.halos.plus(halo_flops(equation, flops) * share, varies)
        self.equations += 1
        if equation.primitive.name != DOT or len(split) < 2:
            return bool(split)
        sums = any(root.is_parameter for operand in operands for root in operand.roots)
        if sums:
            self.reduced = self.reduced.plus(nbytes(equation.outvars[0].aval) * self.factor, varies)
        return not sums

    def store(self, equation: Any, operands: list[TracedValue], is_split: bool) -> list[TracedValue]:
        """Stores the results of an equation, after reading its operands."""
        varies = any(operand.varies for operand in operands)
        self.touch(operands)
        return [self.new(self.bytes_of(equation, out.aval, is_split), varies, is_split) for out in equation.outvars]

    def bytes_of(self, equation: Any, aval: Any, is_split: bool) -> int:
        """Returns the bytes of a device's part of an array; a TPU gives kernels' arrays and pictures whole lanes."""
        size, width = nbytes(aval) // (self.tensor if is_split else 1), aval.shape[-1] if aval.shape else 1
        fills = equation.primitive.name == KERNEL or (len(aval.shape) == 4 and width > LANES)
        return size // width * -(-width // LANES) * LANES if fills and width and self.platform == "tpu" else size

    def fuse(self, equation: Any, operands: list[TracedValue], aval: Any, is_split: bool) -> TracedValue:
        """Returns a value that is computed where it is needed, or stored in place of an operand."""
        roots, varies = roots_of(operands), any(operand.varies for operand in operands)
        size = self.bytes_of(equation, aval, is_split)
        free = [operand for operand in operands if operand.exclusive in large(roots, size)]
        moves = MOVES if self.platform == "cpu" else ()
        computed = equation.primitive.name in (*ARITHMETIC, *moves) or any(operand.is_computed for operand in operands)
        if len(large(roots, size)) < 2:
            only = free[0].exclusive if free else None
            if only and equation.primitive.name == "convert_element_type" and size < only.size:
                self.traffic = self.traffic.plus((size - only.read) * self.factor, only.varies)
                only.size = only.read = size
            return TracedValue(roots, varies, only, is_split, computed, bool(free) and free[0].is_sole)
        if not free:
            return TracedValue(roots, varies, None, is_split, computed)
        taken = max(free, key=lambda operand: (operand.is_sole, operand.exclusive.read if operand.exclusive else 0))
        replaced = taken.exclusive
        assert replaced
        self.touch([TracedValue(roots)])
        if taken.is_sole:  # one kernel makes both
            replaced.size = 0
            self.traffic = self.traffic.plus(-2 * replaced.read * self.factor, replaced.varies)
        else:
            replaced.last, size = self.now - 1, min(size, replaced.read)
        return self.new(size, varies, is_split)

    def stored(self, value: TracedValue, var: Any, equation: Any) -> TracedValue:
        """Stores what an equation reads, if it is computed from several large arrays or laid out for a convolution."""
        size = self.bytes_of(equation, var.aval, value.is_split)
        is_picture = (
            equation.primitive.name in ((DOT, CONV) if self.platform == "cpu" else (CONV,)) and value.is_computed
        )
        if len(large(value.roots, size)) < (1 if is_picture or equation.primitive.name == KERNEL else 2):
            return value
        self.touch([value])
        made = self.new(size, value.varies, value.is_split)
        for buffer in made.roots:
            buffer.is_picture = is_picture
        return made

    def shared(self, value: TracedValue, var: Any, uses: int) -> TracedValue:
        """Stores what is computed once and read several times, as a CPU does."""
        if not value.is_computed or uses < 2 or not large(value.roots, nbytes(var.aval)):
            return value
        self.touch([value])
        return self.new(nbytes(var.aval), value.varies, value.is_split)

    def loop(self, equation: Any, operands: list[TracedValue]) -> list[TracedValue]:
        """Walks the body of a scan once, inside of the time in which everything that it is given lives."""
        params = equation.params
        carried, length = params["num_carry"], params["length"]
        operands = [self.stored(value, var, equation) for value, var in zip(operands, equation.invars, strict=True)]
        self.factor *= length
        inner = [operand._replace(exclusive=None) for operand in operands]
        results = self.run(params["jaxpr"].jaxpr, inner)
        self.touch(results[:carried], moves=False)
        self.factor //= length
        self.touch(operands, moves=False)
        return [
            self.new(nbytes(out.aval) // (self.tensor if result.is_split else 1), result.varies, result.is_split)
            for out, result in zip(equation.outvars, results, strict=True)
        ]

    def new(self, size: int, varies: bool, is_split: bool = False) -> TracedValue:
        """Makes a buffer."""
        buffer = Buffer(size, size, varies, self.now, self.now)
        self.buffers.append(buffer)
        self.traffic = self.traffic.plus(size * self.factor, varies)
        return TracedValue(frozenset([buffer]), varies, buffer, is_split)

    def touch(self, values: Iterable[TracedValue], moves: bool = True) -> None:
        """Reads everything that values are computed from; time goes on."""
        self.now += 1
        for buffer in roots_of(values):
            buffer.born = self.now if buffer.born is None else buffer.born
            buffer.last = self.now
            if moves:
                self.traffic = self.traffic.plus(buffer.read * self.factor, buffer.varies)


def is_excerpt(equation: Any) -> bool:
    """Whether an equation cuts a small part out of an array, which then need not stay."""
    is_cut = equation.primitive.name in ("slice", "dynamic_slice")
    return is_cut and LARGE * equation.outvars[0].aval.size < equation.invars[0].aval.size


def chosen_branch(params: Any, platform: str) -> Any:
    """Returns the branch of a `cond` that a platform compiles: its own, or the one for all others, which is the last.

    Where this process could not trace cuDNN's kernel, the TPU's stands in for it: neither stores scores.
    """
    names = params.get("branches_platforms") or ()
    for wanted in (platform, "tpu") if platform == "cuda" else (platform,):
        for branch, platforms in zip(params["branches"], names, strict=False):
            if platforms and wanted in platforms:
                return branch
    return params["branches"][-1]


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
