"""The collectives of a compiled program, read from its text."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FUSED = "all-reduce-scatter"  # a TPU's name for a fusion of the two, which moves what a reduce-scatter moves

COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
ARRAY = re.compile(r"[a-z]+(\d+)\w*\[([\d,]*)\]|(pred)\[([\d,]*)\]")
CALLED = re.compile(r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
CHAIN = re.compile(r'chain_id="(\d+)"')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """One instruction.

    Attributes:
        size: bytes of its results on one device.
        chain: number of an all-gather that a TPU program spreads over several fusions, which work on it a piece at a
            time and all show its whole result. (They also share a channel, but so do those of blocks that are alike.)
    """

    kind: str
    size: int
    chain: str | None


class Computation(NamedTuple):
    """A list of instructions, and the computations that it runs, with how often."""

    collectives: list[Collective]
    calls: list[tuple[str, int]]


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Returns kind -> how many collectives one device starts in a run of the program, and the bytes of their results.

    A loop counts as often as it is known to turn, and once where that is decided at run time.

    Args:
        text: `compiled.as_text()`.
    """
    entry, computations = read_computations(text)
    totals: dict[str, Counter[str]] = {}
    counted_chains: set[str] = set()
    for collective, times in collectives_below(entry, computations, 1):
        if collective.chain in counted_chains:
            continue
        if collective.chain:
            counted_chains.add(collective.chain)
        total = totals.setdefault(collective.kind, Counter())
        total.update(count=times, bytes=collective.size * times)
    return {kind: dict(total) for kind, total in sorted(totals.items())}


def collectives_below(name: str, computations: dict[str, Computation], times: int) -> Iterator[tuple[Collective, int]]:
    """Yields every collective below a computation, with how often it runs."""
    computation = computations.get(name, Computation([], []))
    yield from ((collective, times) for collective in computation.collectives)
    for called, trip_count in computation.calls:
        yield from collectives_below(called, computations, times * trip_count)


def read_computations(text: str) -> tuple[str, dict[str, Computation]]:
    """Returns the name of the entry computation, and all computations by name."""
    entry, computations = "", {}
    current = Computation([], [])
    for line in text.splitlines():
        head = COMPUTATION.fullmatch(line)
        if head:
            current = computations[head[2]] = Computation([], [])
            entry = head[2] if head[1] else entry
            continue
        match = INSTRUCTION.match(line)
        if match:
            add_instruction(current, *match.groups())
    return entry, computations


def add_instruction(computation: Computation, name: str, result: str, opcode: str, rest: str) -> None:
    """Adds one instruction to its computation."""
    kind, called = opcode.removesuffix("-start"), called_by(rest)
    chain = CHAIN.search(rest) if kind == "all-gather" else None
    if kind in KINDS:
        sizes = array_sizes(result)
        computation.collectives.append(
            Collective(kind, results_of(kind, sizes, started=kind != opcode), chain and chain[1])
        )
    elif any(part.startswith(FUSED) for part in (name, *called)):
        computation.collectives.append(Collective("reduce-scatter", sum(array_sizes(result)), None))
    elif not opcode.endswith("-done"):
        trips = TRIPS.search(rest)
        trip_count = int(trips[1]) if trips else 1
        computation.calls.extend((part, trip_count) for part in called)


def called_by(rest: str) -> list[str]:
    """Returns the computations that an instruction names."""
    branches = [name.strip().lstrip("%") for group in BRANCHES.findall(rest) for name in group.split(",")]
    return CALLED.findall(rest) + branches


def results_of(kind: str, sizes: Sequence[int], started: bool) -> int:
    """Returns the bytes of a collective's results; the started form of some also lists its operands first."""
    if started and kind == "all-gather":
        return sum(sizes[len(sizes) // 2 :])
    if started and kind == "collective-permute":
        return sizes[1]
    return sum(sizes)


def array_sizes(result: str) -> list[int]:
    """Returns the bytes of each array of an instruction's result, such as `(f32[2,3]{1,0}, bf16[4]{0})`."""
    sizes = []
    for bits, shape, _, flags in ARRAY.findall(result):
        elements = int(np.prod([int(n) for n in (shape or flags).split(",") if n], dtype=np.int64))
        sizes.append(elements * (int(bits) // 8 if bits else 1))
    return sizes
