"""The memory, FLOPs and bytes accessed of a traced program, estimated from its jaxpr without a compiler.

XLA never stores most values of a jaxpr. It is modelled by four rules:

1. Matrix products, convolutions, gathers, concatenations, kernels and loops store their results. Reductions store
   theirs, which are small, and read whatever they reduce in one pass.
2. Element-wise and shape operations store nothing: whoever needs their result computes it again from what is stored,
   as long as that is one large array (a norm and an activation between two convolutions, a cast, a softmax).
3. With two or more large inputs, the result is stored in place of an input that nobody else reads (a convolution plus
   a skip connection), or else when a product or convolution needs it; in the narrower type, if it is cast at once.
4. A convolution also stores its input, if that is computed: it is laid out anew, with its padding.

On a CPU, less is fused: products store whatever they read, and what several equations read is computed once.

A stored array lives from its making to its last reader, in the order of the jaxpr. Costs that grow with the batch are
kept apart, so that one trace serves every batch size.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jax.extend.core import Literal

from jaxbooth.plan.flops import ARITHMETIC, CONV, DOT, KERNEL, KINDS, equation_flops, halo_flops
from jaxbooth.plan.jaxpr_values import LARGE_RATIO, Buffer, Cost, TracedValue, buffers_of, large_buffers, nbytes

INLINED = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold the body of a call
REDUCTIONS = ("reduce_", "arg", "cum")
STORING = (
    DOT, CONV, KERNEL, "concatenate", "gather", "scatter", "scatter-add", "sort", "random_bits", "random_split",
    "random_fold_in", "dynamic_update_slice", "while", "custom_call", "ffi_call",
)  # fmt: skip
MOVES = ("transpose", "rev", "pad", "convert_element_type")  # that are not fused into a CPU's products
LANES = 128  # of a TPU's registers: the last dimension of what a kernel takes and gives fills whole ones


@dataclass
class JaxprAnalysis:
    """Goes through a jaxpr, equation by equation.

    Attributes:
        platform: tpu, cuda or cpu, which chooses among the branches of `jax.lax.platform_dependent`.
        tensor: devices among which a mesh splits products.
        partial_sums: bytes of partial products that are summed over the `tensor` axis.
        halo_flops: what convolutions take more where a TPU splits their inputs; see `flops.halo_flops`.
        equations: of the program, a loop's body once.
        time: moves on with every equation that reads what is stored.
        trip_count: of the loops around the current equation.
    """

    platform: str
    tensor: int = 1
    buffers: list[Buffer] = field(default_factory=list)
    flops: dict[str, Cost] = field(default_factory=lambda: dict.fromkeys(KINDS, Cost()))
    bytes_accessed: Cost = field(default_factory=Cost)
    partial_sums: Cost = field(default_factory=Cost)
    halo_flops: Cost = field(default_factory=Cost)
    equations: int = 0
    time: int = 0
    trip_count: int = 1

    def argument(self, aval: Any, per_example: bool = False, size: int = 0, is_split: bool = False) -> TracedValue:
        """Returns the value of an argument.

        Args:
            size: bytes that it takes from its first reader to its last, beside its place among the arguments: of the
                parameters that FSDP gathers.
        """
        buffer = Buffer(size, nbytes(aval), per_example, is_parameter=not per_example)
        self.buffers.append(buffer)
        return TracedValue(frozenset([buffer]), per_example, is_split=is_split)

    def run(self, jaxpr: Any, arguments: list[TracedValue], wanted: Sequence[bool] | None = None) -> list[TracedValue]:
        """Goes through a jaxpr without constants and returns the values of its results.

        Args:
            arguments: replaced by what is stored of them, where the jaxpr stores them.
            wanted: which results somebody reads; default: all.
        """
        wanted = wanted or [True] * len(jaxpr.outvars)
        equations = needed_equations(jaxpr, wanted)
        uses = Counter(var for equation, _ in equations for var in variables(equation.invars))
        uses.update(var for var in jaxpr.outvars if not isinstance(var, Literal))
        remaining_uses = Counter(uses)
        values = dict(zip(jaxpr.invars, arguments, strict=True))

        def read(var: Any) -> TracedValue:
            if isinstance(var, Literal):
                return TracedValue()
            value = values.get(var, TracedValue())
            if remaining_uses[var]:
                return value._replace(reusable=None)
            return value._replace(is_only_reader=value.is_only_reader and uses[var] == 1)

        for equation, needed in equations:
            remaining_uses.subtract(variables(equation.invars))
            before = [read(var) for var in equation.invars]
            operands = list(before)
            if equation.primitive.name in STORING:
                operands = [self.materialize(v, var, equation) for v, var in zip(before, equation.invars, strict=True)]
            results = self.apply(equation, operands, needed)  # a body may have stored some of `operands`
            for var, old, new in zip(equation.invars, before, operands, strict=True):
                if new.buffers != old.buffers:
                    values[var] = new
            for var, value in zip(equation.outvars, results, strict=True):
                values[var] = self.materialize_shared(value, var, uses[var]) if self.platform == "cpu" else value
        arguments[:] = [values[var] for var in jaxpr.invars]
        remaining_uses.clear()
        return [read(var) if is_wanted else TracedValue() for var, is_wanted in zip(jaxpr.outvars, wanted, strict=True)]

    def apply(self, equation: Any, operands: list[TracedValue], wanted: Sequence[bool]) -> list[TracedValue]:
        """Returns the results of one equation; `operands` become what is stored of them, where it stores them."""
        name, params = equation.primitive.name, equation.params
        if name == "optimization_barrier":
            return list(operands)
        if name == "scan":
            return self.run_scan(equation, operands)
        if name == "cond":
            branch_operands = operands[1:]
            results = self.run(platform_branch(params, self.platform).jaxpr, branch_operands, wanted)
            operands[1:] = branch_operands
            return results
        body = next((params[key] for key in INLINED if key in params), None)
        if body is not None and name not in STORING:
            return self.run(getattr(body, "jaxpr", body), operands, wanted)
        is_split = self.count_flops(equation, operands)
        if name in STORING or name.startswith(REDUCTIONS) or is_excerpt(equation):
            return self.store_results(equation, operands, is_split)
        return [self.fuse(equation, operands, out.aval, is_split) for out in equation.outvars]

    def count_flops(self, equation: Any, operands: list[TracedValue]) -> bool:
        """Counts an equation's FLOPs and returns whether its result is split over `tensor`.

        A product of a split parameter with a split activation sums over the split dimension; any other product with
        a split factor keeps it.
        """
        kind, flops = equation_flops(equation)
        split = [operand for operand in operands if operand.is_split]
        per_example = any(operand.per_example for operand in operands)
        share = self.trip_count / self.tensor if split else self.trip_count
        self.flops[kind] = self.flops[kind].plus(flops * share, per_example)
        self.halo_flops = self.halo_flops.plus(halo_flops(equation, flops) * share, per_example)
        self.equations += 1
        if equation.primitive.name != DOT or len(split) < 2:
            return bool(split)
        is_partial = any(buffer.is_parameter for operand in operands for buffer in operand.buffers)
        if is_partial:
            size = nbytes(equation.outvars[0].aval) * self.trip_count
            self.partial_sums = self.partial_sums.plus(size, per_example)
        return not is_partial

    def store_results(self, equation: Any, operands: list[TracedValue], is_split: bool) -> list[TracedValue]:
        """Stores the results of an equation, after reading its operands; a single number grows with no batch."""
        per_example = any(operand.per_example for operand in operands)
        self.read(operands)
        sizes = [(self.bytes_of(equation, out.aval, is_split), out.aval.size > 1) for out in equation.outvars]
        return [self.allocate(size, per_example and is_array, is_split) for size, is_array in sizes]

    def bytes_of(self, equation: Any, aval: Any, is_split: bool) -> int:
        """Returns the bytes of a device's part of an array; a TPU gives kernels' arrays and images whole lanes."""
        size, width = nbytes(aval) // (self.tensor if is_split else 1), aval.shape[-1] if aval.shape else 1
        fills_lanes = equation.primitive.name == KERNEL or (len(aval.shape) == 4 and width > LANES)
        if self.platform != "tpu" or not fills_lanes or not width:
            return size
        return size // width * -(-width // LANES) * LANES

    def fuse(self, equation: Any, operands: list[TracedValue], aval: Any, is_split: bool) -> TracedValue:
        """Returns a value that is computed where it is needed, or stored in place of an operand."""
        buffers, per_example = buffers_of(operands), any(operand.per_example for operand in operands)
        size = self.bytes_of(equation, aval, is_split)
        large = large_buffers(buffers, size)
        reusable = [operand for operand in operands if operand.reusable in large]
        moves = MOVES if self.platform == "cpu" else ()
        computes = equation.primitive.name in (*ARITHMETIC, *moves)
        is_computed = computes or any(operand.is_computed for operand in operands)
        if len(large) < 2:
            only = reusable[0].reusable if reusable else None
            if only and equation.primitive.name == "convert_element_type" and size < only.size:
                saved = (size - only.read) * self.trip_count
                self.bytes_accessed = self.bytes_accessed.plus(saved, only.per_example)
                only.size = only.read = size
            is_only_reader = bool(reusable) and reusable[0].is_only_reader
            return TracedValue(buffers, per_example, only, is_split, is_computed, is_only_reader)
        if not reusable:
            return TracedValue(buffers, per_example, None, is_split, is_computed)
        largest = max(reusable, key=lambda operand: (operand.is_only_reader, operand.reusable.read))  # ty: ignore
        replaced = largest.reusable
        assert replaced
        self.read([TracedValue(buffers)])
        if largest.is_only_reader:  # one kernel makes both
            replaced.size = 0
            self.bytes_accessed = self.bytes_accessed.plus(-2 * replaced.read * self.trip_count, replaced.per_example)
        else:
            replaced.last_use = self.time - 1
            size = min(size, replaced.read)
        return self.allocate(size, per_example, is_split)

    def materialize(self, value: TracedValue, var: Any, equation: Any) -> TracedValue:
        """Stores what an equation reads, if it is computed from several large arrays or laid out for a convolution."""
        size = self.bytes_of(equation, var.aval, value.is_split)
        with_layout = (DOT, CONV) if self.platform == "cpu" else (CONV,)
        is_conv_input = equation.primitive.name in with_layout and value.is_computed
        least = 1 if is_conv_input or equation.primitive.name == KERNEL else 2
        if len(large_buffers(value.buffers, size)) < least:
            return value
        self.read([value])
        stored = self.allocate(size, value.per_example, value.is_split)
        for buffer in stored.buffers:
            buffer.is_conv_input = is_conv_input
        return stored

    def materialize_shared(self, value: TracedValue, var: Any, uses: int) -> TracedValue:
        """Stores what is computed once and read several times, as a CPU does."""
        size = nbytes(var.aval)
        if not value.is_computed or uses < 2 or not large_buffers(value.buffers, size):
            return value
        self.read([value])
        return self.allocate(size, value.per_example, value.is_split)

    def run_scan(self, equation: Any, operands: list[TracedValue]) -> list[TracedValue]:
        """Goes through the body of a scan once, while everything that it is given stays alive."""
        params = equation.params
        operands = [
            self.materialize(value, var, equation) for value, var in zip(operands, equation.invars, strict=True)
        ]
        self.trip_count *= params["length"]
        results = self.run(params["jaxpr"].jaxpr, [operand._replace(reusable=None) for operand in operands])
        self.read(results[: params["num_carry"]], moves=False)
        self.trip_count //= params["length"]
        self.read(operands, moves=False)
        return [
            self.allocate(
                nbytes(out.aval) // (self.tensor if result.is_split else 1), result.per_example, result.is_split
            )
            for out, result in zip(equation.outvars, results, strict=True)
        ]

    def allocate(self, size: int, per_example: bool, is_split: bool = False) -> TracedValue:
        """Writes a new buffer."""
        buffer = Buffer(size, size, per_example, self.time, self.time)
        self.buffers.append(buffer)
        self.bytes_accessed = self.bytes_accessed.plus(size * self.trip_count, per_example)
        return TracedValue(frozenset([buffer]), per_example, buffer, is_split)

    def read(self, values: Iterable[TracedValue], moves: bool = True) -> None:
        """Reads everything that values are computed from; time goes on.

        Args:
            moves: whether that moves bytes, or only keeps the buffers alive.
        """
        self.time += 1
        for buffer in buffers_of(values):
            buffer.first_use = self.time if buffer.first_use is None else buffer.first_use
            buffer.last_use = self.time
            if moves:
                self.bytes_accessed = self.bytes_accessed.plus(buffer.read * self.trip_count, buffer.per_example)


def is_excerpt(equation: Any) -> bool:
    """Whether an equation cuts a small part out of an array, which then need not stay."""
    is_cut = equation.primitive.name in ("slice", "dynamic_slice")
    return is_cut and LARGE_RATIO * equation.outvars[0].aval.size < equation.invars[0].aval.size


def platform_branch(params: Any, platform: str) -> Any:
    """Returns the branch of a `cond` that a platform compiles: its own, or the one for all others, which is the last.

    Where this process could not trace cuDNN's kernel, the TPU's stands in for it: neither stores scores.
    """
    platforms_of_branches = params.get("branches_platforms") or ()
    for accepted in (platform, "tpu") if platform == "cuda" else (platform,):
        for branch, platforms in zip(params["branches"], platforms_of_branches, strict=False):
            if platforms and accepted in platforms:
                return branch
    return params["branches"][-1]


def variables(invars: Sequence[Any]) -> set[Any]:
    """Returns the variables among operands."""
    return {var for var in invars if not isinstance(var, Literal)}


def needed_equations(jaxpr: Any, wanted: Sequence[bool]) -> list[tuple[Any, list[bool]]]:
    """Returns the equations that lead to a wanted result, each with which of its own results are needed."""
    alive = {var for var, want in zip(jaxpr.outvars, wanted, strict=True) if want and not isinstance(var, Literal)}
    equations = []
    for equation in reversed(jaxpr.eqns):
        needed = [var in alive for var in equation.outvars]
        if any(needed) or equation.effects:
            equations.append((equation, needed))
            alive |= variables(equation.invars)
    return equations[::-1]
