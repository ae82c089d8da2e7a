"""Which of a component's weight files to use: folders and repositories hold the same weights in several variants."""

import re
from collections.abc import Iterable

from jaxbooth.errors import UserError
from jaxbooth.weights.architectures import COMPONENTS
from jaxbooth.weights.diffusers_read import INDEX, WEIGHTS, variant_of


def weight_sets(names: Iterable[str], file_type: str) -> dict[str, list[str]]:
    """Returns variant ("" for none) -> files of one complete set of weights.

    Args:
        names: files of one component's folder; others than weights are left out.
        file_type: "safetensors" or "bin".
    """
    sets: dict[str, list[str]] = {}
    for name in sorted(names):
        match = WEIGHTS.fullmatch(name) or INDEX.fullmatch(name)
        if match and match["kind"] == file_type:
            sets.setdefault(variant_of(name), []).append(name)
    for variant, files in sets.items():
        whole = [name for name in files if not re.search(r"-\d+-of-\d+|\.index\.", name)]
        sets[variant] = whole[:1] or files  # a single file makes shards superfluous
    return sets


def choose_weights(names: Iterable[str], variant: str | None, allow_pickle: bool, label: str) -> list[str]:
    """Returns the files of the set to use: the variant's, the plain one, or the only one; empty where there is none.

    Raises:
        UserError: there are several variants, none is plain, and none was asked for.
    """
    names = list(names)
    sets = weight_sets(names, "safetensors") or (weight_sets(names, "bin") if allow_pickle else {})
    for wanted in (variant or "", ""):
        if wanted in sets:
            return sets[wanted]
    if len(sets) > 1:
        raise UserError(f"{label} holds the variants {' and '.join(sorted(sets))}; choose one with --variant.")
    return next(iter(sets.values()), [])


def check_variant(files: Iterable[str], variant: str | None, label: str) -> None:
    """Refuses a variant that no component has.

    Args:
        files: paths within the model (`unet/diffusion_pytorch_model.fp16.safetensors`).

    Raises:
        UserError: the message names the variants that there are.
    """
    variants = {variant_of(name) for part, _, name in (file.partition("/") for file in files) if part in COMPONENTS} - {
        ""
    }
    if variant and variant not in variants:
        there = f"it has {' and '.join(sorted(variants))}" if variants else "it has none"
        raise UserError(f"{label} has no variant {variant}; {there}.")
