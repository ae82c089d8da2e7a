"""The adapters of a run: what they share, whether they suit the base model, and the file that they start from."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import LoraConfig
from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import KINDS, LYCORIS_KINDS, AdapterKindName, LoraSpec, adapted_layer, lora_spec
from jaxbooth.models.lora import layer_parts
from jaxbooth.models.lora_targets import target_layers
from jaxbooth.models.low_rank import LORA_A, LORA_B
from jaxbooth.params import AnyArray, Shapes, flatten_components
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.lora.lycoris import kind_of, with_scale
from jaxbooth.weights.lora.read import read_lora

TrainedShapes = dict[str, Shapes]  # component -> names and shapes


def run_lora_spec(lora: LoraConfig) -> LoraSpec | None:
    """Returns what a run's adapters share, or None for full fine-tuning."""
    return lora_spec(lora.rank, lora.alpha, lora.rslora, lora.kind, lora.factor) if lora.rank else None


def check_adapters(base: BaseModel, config: Config) -> None:
    """Refuses a rank that no adapted layer has, and a LoKr's factor that divides none of them.

    A LoKr's rank may be any: from half of a factor's side on, it trains the whole factor.

    Raises:
        UserError: the message names the largest rank, or the flag.
    """
    lora = run_lora_spec(config.lora)
    if not lora or config.text.is_textual_inversion:
        return
    kernels = list(adapted_kernels(base, config))
    if lora.kind == "lokr":
        sides = {side for *_, inputs, outputs in kernels for side in (inputs, outputs)}
        if sides and lora.factor > 0 and all(side % lora.factor for side in sides):
            raise UserError(
                f"--lora.factor {lora.factor} divides no side of an adapted layer of this model "
                f"({', '.join(map(str, sorted(sides)))}); leave it out for the nearest factors."
            )
        return
    largest = max((min(math.prod(inputs), outputs) for *inputs, outputs in kernels), default=0)
    if lora.rank > largest > 0:
        raise UserError(
            f"--lora.rank {lora.rank} is more than any adapted layer of this model has; set {largest} at most."
        )


def adapted_kernels(base: BaseModel, config: Config) -> Iterator[tuple[int, ...]]:
    """Yields the shape of every kernel that gets an adapter."""
    for name in base.trainable_components(config.train.text_encoder):
        module = base.module(name)
        for layer in target_layers(module, name, config.lora_targets):
            yield module.shapes[f"{layer}.kernel"].shape


def read_lora_init(base: BaseModel, config: Config, trained: TrainedShapes) -> LoraWeights:
    """Reads --lora.init and makes sure that this run can continue from it.

    Raises:
        UserError: its rank, its layers or its kind are not this run's.
    """
    path, rank = config.lora.init, config.lora.rank or 0
    assert path is not None
    modules = {name: base.module(name) for name in base.trainable_components()}
    lora = read_lora(path, modules, base.denoiser_config)
    check_kind(path, kind_of(lora), config.lora.kind)
    layers = {adapted_layer(f"{component}.{name}") for component, shapes in trained.items() for name in shapes}
    surplus = [name for name in sorted(lora.adapters) if adapted_layer(name) not in layers]
    if surplus:
        raise UserError(
            f"{path} holds {len(surplus)} adapter tensor(s) that this run does not train, such as {surplus[0]}; "
            "widen --lora.targets, or set --train.text-encoder."
        )
    if config.lora.kind in LYCORIS_KINDS:
        check_factors(path, lora, flatten_components(trained))
        return lora
    largest = max(value.shape[-1] for name, value in lora.adapters.items() if name.endswith(LORA_A))
    if largest > rank:
        raise UserError(f"{path} has rank {largest}, more than --lora.rank {rank}; raise it to {largest}.")
    return lora


def check_kind(path: Path, found: str, kind: AdapterKindName) -> None:
    """Refuses a file of another kind than the run trains.

    Raises:
        UserError: the message names the kind of the file.
    """
    if found == kind:
        return
    flag = "leave --lora.kind out" if found == "lora" else f"set --lora.kind {found}"
    raise UserError(f"{path} holds a {KINDS[found].title}, and this run trains a {KINDS[kind].title}; {flag}.")


def check_factors(path: Path, lora: LoraWeights, trained: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Refuses a LoHa or LoKr whose factors are of other sizes than the run's: they cannot be filled in part.

    Args:
        trained: `<component>.<parameter>` of everything trained.
    """
    for layer in lora.alphas:
        found = {part: value.shape for part, value in layer_parts(lora.adapters, layer).items()}
        expected = {part: leaf.shape for part, leaf in layer_parts(trained, layer).items()}
        if found != expected:
            raise UserError(
                f"{path}: the factors of {layer} have shapes {describe(found)}, and this run's {describe(expected)}; "
                "set --lora.rank, and of a LoKr --lora.factor, to what the file was trained with."
            )


def describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Lists names and shapes."""
    return ", ".join(f"{part.removesuffix('.kernel')} {shape}" for part, shape in shapes.items())


def load_lora_init(
    values: dict[str, dict[str, AnyArray]], lora: LoraWeights, base: BaseModel
) -> dict[str, dict[str, AnyArray]]:
    """Puts a file's adapters in the place of fresh ones.

    A smaller rank fills the first columns of A and rows of B. The file's own alpha / rank goes into B.

    Args:
        values: component -> fresh values, which are changed.
    """
    assert base.lora is not None
    if base.lora.kind in LYCORIS_KINDS:
        lora = with_scale(lora, base.lora.scale)
    for full_name, loaded in lora.adapters.items():
        component, name = full_name.split(".", 1)
        value = np.array(values[component][name])
        if name.endswith(LORA_A):
            value[..., : loaded.shape[-1]] = loaded
        elif name.endswith(LORA_B):
            rank = loaded.shape[-2]
            scale = lora.alphas[full_name.removesuffix(f".{LORA_B}")] / rank
            value[..., :rank, :] = loaded * (scale / base.lora.scale)
        else:
            value = loaded
        values[component][name] = value
    return values
