"""What a bfloat16 program sums, and how far its gradients are from float32's."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxlib.mlir import ir

SUMMING = ("stablehlo.reduce", "stablehlo.reduce_window", "stablehlo.scatter", "stablehlo.select_and_scatter")
SHORT = ("bf16", "f16")


def bfloat16_sums(lowered: Any) -> list[int]:
    """Returns how many elements each sum of a lowered program adds up in 16 bits; a scatter may add all its updates."""
    return [count for op in operations(lowered.compiler_ir("stablehlo").operation) for count in added(op)]


def operations(parent: Any) -> Iterator[Any]:
    """Yields every operation below another one."""
    for region in parent.regions:
        for block in region:
            for op in block:
                yield op.operation
                yield from operations(op.operation)


def added(op: Any) -> list[int]:
    """Returns the number of elements that an operation adds up in 16 bits, if it does so."""
    if op.name not in SUMMING or "stablehlo.add" not in {inner.name for inner in operations(op)}:
        return []
    shape = ir.ShapedType(op.operands[0].type)
    if str(shape.element_type) not in SHORT:
        return []
    if op.name == "stablehlo.reduce":
        return [math.prod(shape.shape[dim] for dim in ir.DenseI64ArrayAttr(op.attributes["dimensions"]))]
    return [math.prod(ir.ShapedType(op.operands[len(op.operands) - 1].type).shape)]


def kind_of(name: str, shapes: Mapping[str, Any]) -> str:
    """Returns what a parameter is, in two words."""
    *_, layer, leaf = name.split(".")
    if leaf == "embedding":
        return layer.replace("_", " ")
    if "norm" in layer:
        return f"norm {leaf}"
    if "time_emb" in name:
        return f"time {leaf}"
    return f"{'conv' if len(shapes[name.replace('.bias', '.kernel')].shape) == 4 else 'linear'} {leaf}"


def errors_by_kind(found: list[dict], exact: list[dict]) -> dict[str, float]:
    """Returns kind of parameter, and "whole" -> distance of gradients relative to the exact ones' norm.

    Args:
        found, exact: of several batches; the errors are means over them.
    """
    names: dict[str, list[str]] = {"whole": list(exact[0])}
    for name in exact[0]:
        names.setdefault(kind_of(name, exact[0]), []).append(name)
    pairs = list(zip(found, exact, strict=True))
    return {kind: float(np.mean([distance(a, b, some) for a, b in pairs])) for kind, some in names.items()}


def distance(found: dict, exact: dict, names: list[str]) -> float:
    """Returns |found - exact| / |exact| of some parameters together."""
    difference = sum(np.square(np.float64(found[name]) - exact[name]).sum() for name in names)
    return float(np.sqrt(difference / sum(np.square(np.float64(exact[name])).sum() for name in names)))
