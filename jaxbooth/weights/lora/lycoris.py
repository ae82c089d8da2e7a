"""LoHa and LoKr in LyCORIS' files: their tensors, the forms that are not trained here, and layers of fused matrices.

Tensors are in torch's layout, outputs before inputs: `hada_w1_a` (out, r) and `hada_w1_b` (r, in * window), the same
for w2, `lokr_w1` (o, m), `lokr_w2` (p, n, *window) or `lokr_w2_a` (p, r) and `lokr_w2_b` (r, n * window). Files with a
Tucker core (`hada_t1`, `lokr_t2`) or a first LoKr factor of low rank are read exactly: the core goes into the factor
that takes inputs in, and `lokr_w1_a` and `lokr_w1_b` are multiplied.
"""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import KINDS, TAKING_IN
from jaxbooth.params import without_prefix
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.names import export_array, import_axes

FACTORS = r"hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)"  # the ends of tensors' names
Tensors = Mapping[str, np.ndarray]  # of one module, by the ends of their names


class LycorisAdapter(NamedTuple):
    """One module's LoHa or LoKr.

    Attributes:
        kind: of `KINDS`.
        factors: name without `.kernel` -> float32 in torch's layout, a window apart from the inputs.
        alpha: divided by the rank it is the scale; it means nothing to a LoKr of two whole matrices.
    """

    component: str
    module: str
    kind: str
    factors: dict[str, np.ndarray]
    alpha: float

    @property
    def rank(self) -> int | None:
        """Width between two factors; None: there is none."""
        down = [value for name, value in self.factors.items() if name in TAKING_IN]
        return len(down[0]) if down else None


def kind_of(lora: LoraWeights) -> str:
    """Returns the kind of a file's adapters, of `KINDS`; a DoRA is one if any layer has magnitudes."""
    words = {name.rpartition(".")[0].rpartition(".")[2] for name in lora.adapters}
    for word, kind in (("hada_w1_a", "loha"), ("lokr_w1", "lokr"), ("lora_magnitude_vector", "dora")):
        if word in words:
            return kind
    return "lora"


def lycoris_adapters(lora: LoraWeights) -> list[LycorisAdapter]:
    """Splits a LoHa or LoKr into its modules, in the order of their names."""
    adapters = []
    for key, alpha in sorted(lora.alphas.items()):
        parts = {
            name.removesuffix(".kernel"): export_array(name, np.asarray(value))
            for name, value in without_prefix(key, lora.adapters).items()
        }
        component, _, module = key.partition(".")
        kind = "loha" if "hada_w1_a" in parts else "lokr"
        adapters.append(LycorisAdapter(component, module, kind, parts, alpha))
    return adapters


def add_lycoris(lora: LoraWeights, adapter: LycorisAdapter) -> None:
    """Adds a module to a LoRA: the inverse of `lycoris_adapters`."""
    key = f"{adapter.component}.{adapter.module}"
    for name, value in adapter.factors.items():
        axes = import_axes(".kernel", value.ndim)
        lora.adapters[f"{key}.{name}.kernel"] = np.ascontiguousarray(value.transpose(axes))
    lora.alphas[key] = adapter.alpha


def stored_tensors(adapter: LycorisAdapter) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the factors as LyCORIS stores them: those of low rank are matrices."""
    for name, value in adapter.factors.items():
        is_matrix = name != "lokr_w2"
        yield name, value.reshape(len(value), -1) if is_matrix else value


def file_shape(tensors: Tensors) -> tuple[int, ...]:
    """Returns (rank, inputs, ...) of a module's first matrix, as far as its tensors are what they should be."""
    if "hada_w1_b" in tensors:
        return tensors["hada_w1_b"].shape
    first = tensors.get("lokr_w1", tensors.get("lokr_w1_b", np.empty((0, 0))))
    second = tensors.get("lokr_w2", tensors.get("lokr_w2_b", np.empty((0, 0))))
    sides = [shape[1] for shape in (first.shape, second.shape) if len(shape) > 1]
    return 1, math.prod(sides)


def has_factors(tensors: Iterable[str]) -> bool:
    """Whether a module's tensors are a LoHa's or LoKr's."""
    return any(re.fullmatch(FACTORS, name) for name in tensors)


def missing_factors(tensors: Collection[str]) -> list[str]:
    """Returns the names of the factors that a module lacks."""
    if any(name.startswith("hada_") for name in tensors):
        return [name for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b") if name not in tensors]
    lacking = []
    for whole in ("lokr_w1", "lokr_w2"):
        pair = [f"{whole}_{end}" for end in "ab"]
        if whole not in tensors:
            lacking += [name for name in pair if name not in tensors]
    return lacking


def read_lycoris(source: str, tensors: Tensors, kernel: Sequence[int], hint: str) -> tuple[str, dict[str, np.ndarray]]:
    """Returns a module's kind and factors, checked against the base model's kernel.

    Args:
        tensors: as the file has them; `alpha` is among them, if it has one.
        kernel: shape, (*window, inputs, outputs).
        hint: the end of messages.

    Raises:
        UserError: shapes are not those of the kernel, or it is a DoRA besides.
    """
    if "dora_scale" in tensors:
        raise UserError(f"{source}: a LoHa or LoKr with DoRA's magnitudes (dora_scale) is not supported.")
    kind = "loha" if "hada_w1_a" in tensors else "lokr"
    if any(value.ndim < 2 or not value.size for name, value in tensors.items() if name != "alpha"):
        raise UserError(f"{source}: a factor of its {KINDS[kind].title} is no matrix; fetch another copy.")
    read = read_loha if kind == "loha" else read_lokr
    try:
        return kind, read(source, tensors, kernel, hint)
    except ValueError:  # of a product or a new shape
        raise UserError(f"{source}: the factors of its {KINDS[kind].title} do not fit each other{hint}.") from None


def read_loha(source: str, tensors: Tensors, kernel: Sequence[int], hint: str) -> dict[str, np.ndarray]:
    """Returns the four factors of a LoHa."""
    *window, inputs, outputs = kernel
    factors = {}
    for index in "12":
        up, down = without_core(tensors, f"hada_w{index}", f"hada_t{index}", window)
        rank = len(down)
        sides = (outputs, rank, rank, math.prod((*window, inputs)))
        if (*up.shape, *down.reshape(rank, -1).shape) != sides:
            raise wrong_size(source, "LoHa", up.shape[0], down.size // max(rank, 1), kernel, hint)
        factors[f"hada_w{index}_a"] = up.reshape(outputs, rank, *(1 for _ in window))
        factors[f"hada_w{index}_b"] = down.reshape(rank, inputs, *window)
    if len(factors["hada_w1_b"]) != len(factors["hada_w2_b"]):
        raise UserError(f"{source}: the two halves of its LoHa have different ranks; fetch another copy.")
    return factors


def read_lokr(source: str, tensors: Tensors, kernel: Sequence[int], hint: str) -> dict[str, np.ndarray]:
    """Returns the factors of a LoKr; alpha / rank of a first factor of low rank goes into it where nothing else has."""
    *window, inputs, outputs = kernel
    w1 = tensors.get("lokr_w1")
    if w1 is None:
        down = tensors["lokr_w1_b"]
        w1 = tensors["lokr_w1_a"] @ down
        if "lokr_w2" in tensors and "alpha" in tensors:
            w1 = w1 * np.float32(tensors["alpha"].item() / len(down))
    w1 = w1.reshape(len(w1), -1)
    if "lokr_w2" in tensors:
        factors = {"lokr_w2": tensors["lokr_w2"]}
        p, columns = len(factors["lokr_w2"]), factors["lokr_w2"][0].size
    else:
        up, down = without_core(tensors, "lokr_w2", "lokr_t2", window)
        factors = {"lokr_w2_a": up.reshape(len(up), len(down), *(1 for _ in window)), "lokr_w2_b": down}
        p, columns = len(up), down[0].size
    made = (len(w1) * p, w1.shape[1] * columns)
    if made != (outputs, inputs * math.prod(window)) or inputs % w1.shape[1]:
        raise wrong_size(source, "LoKr", *made, kernel, hint)
    takes_in = (-1, inputs // w1.shape[1], *window)
    return {"lokr_w1": w1} | {
        name: value if name == "lokr_w2_a" else value.reshape(takes_in) for name, value in factors.items()
    }


def wrong_size(source: str, title: str, outputs: int, inputs: int, kernel: Sequence[int], hint: str) -> UserError:
    """Returns the error of factors that make a matrix of another size than the kernel."""
    *window, fan_in, fan_out = kernel
    return UserError(
        f"{source}: its {title} makes a matrix of {outputs} x {inputs}, but this base model asks for {fan_out} x "
        f"{fan_in * math.prod(window)}{hint}."
    )


def without_core(tensors: Tensors, name: str, core: str, window: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns a pair of factors, (out, r) and (r, in, ...), the Tucker core multiplied into the second.

    With a core the file has both transposed: (r, out), and (r, in) behind the core's second axis.
    """
    up, down = tensors[f"{name}_a"], tensors[f"{name}_b"]
    if core not in tensors:
        return up.reshape(len(up), -1), down
    return up.T, np.einsum("ij...,jn->in...", tensors[core].reshape(len(up), len(down), *window), down)


def split_rows(adapter: LycorisAdapter, modules: Sequence[str], widths: Sequence[int]) -> list[LycorisAdapter] | None:
    """Returns the adapters of layers whose outputs lie one after another in one matrix; None: they cannot be apart.

    A LoKr's outputs are groups of equal rows of its second factor, so that only whole groups can be parted.

    Args:
        modules: the layers, in the order of their outputs.
        widths: outputs of each.
    """
    ends = np.cumsum(widths)[:-1]
    rows, size = ("hada_w1_a", "hada_w2_a"), 1
    if adapter.kind == "lokr":
        rows, size = ("lokr_w1",), sum(widths) // len(adapter.factors["lokr_w1"])
    if any(end % size for end in ends):
        return None
    blocks = {name: np.split(adapter.factors[name], ends // size) for name in rows}
    return [
        adapter._replace(
            module=module, factors=adapter.factors | {name: parts[index] for name, parts in blocks.items()}
        )
        for index, module in enumerate(modules)
    ]


def swap_output_halves(adapter: LycorisAdapter) -> LycorisAdapter | None:
    """Returns the adapter of a layer whose outputs' halves lie the other way round; None: it has no such one."""
    if adapter.kind == "lokr":
        names = ("lokr_w1",)
        if len(adapter.factors["lokr_w1"]) % 2:
            return None
    else:
        names = ("hada_w1_a", "hada_w2_a")
    swapped = {name: np.concatenate(np.split(adapter.factors[name], 2)[::-1]) for name in names}
    return adapter._replace(factors=adapter.factors | swapped)


def with_alpha(adapter: LycorisAdapter, alpha: float | None) -> LycorisAdapter:
    """Returns the same change with another alpha; the difference goes into a factor, but for two whole matrices."""
    if adapter.rank is None or alpha is None or adapter.alpha == alpha:
        return adapter
    name = "hada_w1_a" if adapter.kind == "loha" else "lokr_w1"
    scaled = adapter.factors[name] * np.float32(adapter.alpha / alpha)
    return adapter._replace(factors=adapter.factors | {name: scaled}, alpha=float(alpha))


def with_scale(lora: LoraWeights, scale: float) -> LoraWeights:
    """Returns the same changes where alpha / rank is `scale` in all modules."""
    result = LoraWeights({}, {})
    for adapter in lycoris_adapters(lora):
        add_lycoris(result, with_alpha(adapter, None if adapter.rank is None else scale * adapter.rank))
    return result
