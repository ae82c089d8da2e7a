"""Which parameters a run trains: whole components, adapters, learned embeddings."""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.subject import noun_phrase
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING, init_placeholder_embeddings
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import info, warn
from jaxbooth.errors import UserError
from jaxbooth.models.lora import LORA_A, LORA_B, MAGNITUDE, LoraSpec, init_lora, lora_shapes, lora_spec, target_layers
from jaxbooth.params import AnyArray, Params, Shapes
from jaxbooth.sharding import param_shardings
from jaxbooth.weights.lora.read import LoraWeights, read_lora

TrainedShapes = dict[str, Shapes]  # component -> names and shapes
AnyArrays = dict[str, AnyArray]


def add_trainable(base: BaseModel, config: Config) -> BaseModel:
    """Gives a base model the run's adapters and placeholder tokens.

    Raises:
        UserError: a placeholder token is in the vocabulary already.
    """
    if config.text.placeholder_tokens:
        side = base.text.add_placeholder_tokens(config.text.placeholder_tokens, config.text.vectors_per_token)
        base = base.with_text(side)
    lora = run_lora_spec(config)
    return base.with_lora(lora) if lora else base


def run_lora_spec(config: Config) -> LoraSpec | None:
    """Returns what the run's adapters share, or None for full fine-tuning."""
    chosen = config.lora
    return lora_spec(chosen.rank, chosen.alpha, chosen.rslora, chosen.dora) if chosen.rank else None


def trained_shapes(base: BaseModel, config: Config) -> TrainedShapes:
    """Returns names and shapes of everything that the run trains, by component.

    Raises:
        UserError: --lora.targets matches nothing.
    """
    components = ["unet", *(base.text_encoder_names if config.train.text_encoder else ())]
    found: TrainedShapes = {}
    if config.text.token_training != "textual-inversion":
        found = {name: base.module(name).shapes for name in components}
        lora = run_lora_spec(config)
        if lora:
            layers = {name: target_layers(base.module(name), name, config.lora_targets) for name in components}
            if not all(layers.values()):
                empty = next(name for name in components if not layers[name])
                raise UserError(f"--lora.targets {config.lora_targets!r} matches no layer of the {empty}.")
            found = {name: lora_shapes(base.module(name), layers[name], lora) for name in components}
    entries = sum(len(token.entries) for token in base.text.placeholder_tokens)
    for tower in base.text.encoders if entries else ():
        leaf = jax.ShapeDtypeStruct((entries, tower.config.hidden_size), np.float32)
        found[tower.name] = found.get(tower.name, {}) | {PLACEHOLDER_EMBEDDING: leaf}
    return found


def check_rank(base: BaseModel, config: Config) -> None:
    """Refuses a rank that no adapted layer of the base model has: a product of such adapters has a smaller one.

    Raises:
        UserError: the message names the largest rank.
    """
    lora = run_lora_spec(config)
    if not lora or config.text.token_training == "textual-inversion":
        return
    components = ["unet", *(base.text_encoder_names if config.train.text_encoder else ())]
    networks = {name: base.module(name) for name in components}
    kernels = [
        networks[name].shapes[f"{layer}.kernel"].shape
        for name in components
        for layer in target_layers(networks[name], name, config.lora_targets)
    ]
    largest = max((min(math.prod(shape[:-1]), shape[-1]) for shape in kernels), default=0)
    if lora.rank > largest > 0:
        raise UserError(
            f"--lora.rank {lora.rank} is more than any adapted layer of this model has; set {largest} at most."
        )


def unused_parameters(base: BaseModel, trained: TrainedShapes) -> frozenset[str]:
    """Returns `<component>.<parameter>` of everything trained that nothing reads, so that it never has a gradient.

    A text encoder is read up to the layer that `TextSide.encode` takes its features from; SDXL's second one also to its
    end, for the pooled feature.
    """
    found = set()
    for tower in base.text.encoders:
        if base.text.conditioning.has_pooled and tower is base.text.encoders[-1]:
            continue
        skipped = base.text.clip_skip + base.text.conditioning.skipped_layers
        count = tower.config.num_hidden_layers
        unread = [f"encoder.layers.{index}." for index in range(count - skipped, count)] + ["text_projection."]
        unread += [] if base.text.conditioning.has_final_norm else ["final_layer_norm."]
        found |= {f"{tower.name}.{leaf}" for leaf in trained.get(tower.name, {}) if leaf.startswith(tuple(unread))}
    return frozenset(found)


def fully_trained(base: BaseModel, trained: TrainedShapes) -> tuple[str, ...]:
    """Returns the components whose own parameters are trained; they live in the train state alone."""
    return tuple(name for name, shapes in trained.items() if any(leaf in shapes for leaf in base.module(name).shapes))


def init_trainable(
    base: BaseModel, config: Config, trained: TrainedShapes, params: Mapping[str, Params]
) -> dict[str, AnyArrays]:
    """Returns the trained parameters before the first step.

    Args:
        params: component -> the base model's parameters.
    """
    lora_file = read_lora_init(base, config, trained) if config.lora.init else None
    if lora_file:
        total = sum(".lora_" in leaf for shapes in trained.values() for leaf in shapes)
        missing = total - len(lora_file.adapters)
        if missing:
            warn(f"{config.lora.init} has no values for {missing} of {total} trained tensors; those start afresh.")
    embeddings = {}
    if base.text.placeholder_tokens:
        starts = [initializer_token(config, token.text) for token in base.text.placeholder_tokens]
        embeddings = init_placeholder_embeddings(base.text, params, starts)
        for token, word in zip(base.text.placeholder_tokens, starts, strict=True):
            info(f"placeholder token {token.text} starts as '{word}'")
    values: dict[str, AnyArrays] = {}
    for name, shapes in trained.items():
        own = {leaf: params[name][leaf] for leaf in shapes if leaf in params[name]}
        adapters = {leaf: shape for leaf, shape in shapes.items() if ".lora_" in leaf}
        fresh = init_lora(params[name], adapters, config.seed)
        values[name] = own | fresh
        if PLACEHOLDER_EMBEDDING in shapes:
            values[name][PLACEHOLDER_EMBEDDING] = embeddings[name]
    return load_lora_init(values, lora_file, base, config) if lora_file else values


def initializer_token(config: Config, word: str) -> str:
    """Returns the word that a placeholder token starts from: as set, or the class of the subject whose prompt has it.

    Raises:
        UserError: there is no class prompt to take it from.
    """
    if config.text.initializer_token:
        return config.text.initializer_token
    subject = next((one for one in config.subjects if word in one.instance_prompt), config.subjects[0])
    class_words = noun_phrase(subject.class_prompt or "").split()
    if not class_words:
        raise UserError("--text.initializer-token is missing: a word that the new embeddings start from, such as dog.")
    return class_words[-1]


def read_lora_init(base: BaseModel, config: Config, trained: TrainedShapes) -> LoraWeights:
    """Reads --lora.init and makes sure that this run can go on from it.

    Raises:
        UserError: its rank, its layers or its kind are not this run's.
    """
    path, rank = config.lora.init, config.lora.rank or 0
    assert path is not None
    networks = {name: base.module(name) for name in ("unet", *base.text_encoder_names)}
    lora = read_lora(path, networks, base.unet_config)
    expected = {f"{component}.{leaf}" for component, shapes in trained.items() for leaf in shapes}
    surplus = sorted(set(lora.adapters) - expected)
    if surplus:
        raise UserError(
            f"{path} holds {len(surplus)} adapter tensor(s) that this run does not train, such as {surplus[0]}; "
            "widen --lora.targets, or set --train.text-encoder or --lora.dora."
        )
    if config.lora.dora and not any(name.endswith(MAGNITUDE) for name in lora.adapters):
        raise UserError(f"{path} has no magnitudes, so it is no DoRA to go on from; leave --lora.dora out.")
    largest = max(value.shape[-1] for name, value in lora.adapters.items() if name.endswith(LORA_A))
    if largest > rank:
        raise UserError(f"{path} has rank {largest}, more than --lora.rank {rank}; raise it to {largest}.")
    return lora


def load_lora_init(
    values: dict[str, AnyArrays], lora: LoraWeights, base: BaseModel, config: Config
) -> dict[str, AnyArrays]:
    """Puts a file's adapters in place of the fresh ones.

    A smaller rank fills the first columns of A and rows of B. The file's own alpha / rank goes into B.
    """
    assert base.lora is not None
    for full_name, value in lora.adapters.items():
        component, name = full_name.split(".", 1)
        fresh = np.array(values[component][name])
        if name.endswith(LORA_A):
            fresh[..., : value.shape[-1]] = value
        elif name.endswith(LORA_B):
            rank = value.shape[-2]
            own_scale = lora.alphas[full_name.removesuffix(f".{LORA_B}")] / rank
            fresh[..., :rank, :] = value * (own_scale / base.lora.scale)
        else:
            fresh = value
        values[component][name] = fresh
    return values


def shard_params(values: Mapping[str, Mapping[str, AnyArray]], mesh: Mesh) -> dict[str, Params]:
    """Places trained values by the partition rule, as float32."""
    place = param_shardings(mesh)

    def put(name: str, value: AnyArray) -> jax.Array:
        if isinstance(value, jax.Array):
            return value
        array = np.asarray(value, np.float32)
        return jax.make_array_from_callback(array.shape, place(name, array.shape), lambda index: array[index])

    return {c: {name: put(name, value) for name, value in params.items()} for c, params in values.items()}
