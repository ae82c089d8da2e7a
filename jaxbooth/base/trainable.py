"""Which parameters a run trains: whole components, LoRA adapters, embeddings of placeholder tokens."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING, TOKEN_EMBEDDING, TextEncoders
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import LoraConfig
from jaxbooth.config.subjects import initializer_token
from jaxbooth.console.messages import info, warn
from jaxbooth.distributed.arrays import to_host
from jaxbooth.errors import UserError
from jaxbooth.models.lora import LORA_A, LORA_B, MAGNITUDE, LoraSpec, init_lora, lora_shapes, lora_spec, target_layers
from jaxbooth.params import AnyArray, Params, Shapes
from jaxbooth.sharding import param_shardings
from jaxbooth.weights.lora.adapters import LoraWeights
from jaxbooth.weights.lora.read import read_lora

TrainedShapes = dict[str, Shapes]  # component -> names and shapes
AnyArrays = dict[str, AnyArray]


def add_trainable(base: BaseModel, config: Config) -> BaseModel:
    """Returns a base model with the run's adapters and placeholder tokens, whose frozen kernels are held as it says.

    Raises:
        UserError: a placeholder token is in the vocabulary already, or the text encoder cannot be trained.
    """
    if base.text.runs_once and config.train.text_encoder:
        raise UserError(
            f"--train.text-encoder: the text encoder of {base.family.title} is a language model that is run once and "
            "never trained; leave the flag out."
        )
    tokens = config.text.placeholder_tokens
    if tokens:
        base = base.with_text(base.text.add_placeholder_tokens(tokens, config.text.vectors_per_token))
    base = base.with_quantization(config.model_quantization)
    lora = run_lora_spec(config.lora)
    return base.with_lora(lora) if lora else base


def run_lora_spec(lora: LoraConfig) -> LoraSpec | None:
    """Returns what a run's adapters share, or None for full fine-tuning."""
    return lora_spec(lora.rank, lora.alpha, lora.rslora, lora.dora) if lora.rank else None


def trained_shapes(base: BaseModel, config: Config) -> TrainedShapes:
    """Returns names and shapes of everything that the run trains, by component.

    Raises:
        UserError: --lora.targets matches nothing.
    """
    trained: TrainedShapes = {}
    if not config.text.is_textual_inversion:
        lora = run_lora_spec(config.lora)
        for name in base.trainable_components(config.train.text_encoder):
            module = base.module(name)
            if not lora:
                trained[name] = module.shapes
                continue
            layers = target_layers(module, name, config.lora_targets)
            if not layers:
                raise UserError(f"--lora.targets {config.lora_targets!r} matches no layer of the {name}.")
            trained[name] = lora_shapes(module, layers, lora)
    entries = sum(len(token.entries) for token in base.text.placeholder_tokens)
    for encoder in base.text.encoders if entries else ():
        embedding = jax.ShapeDtypeStruct((entries, encoder.config.hidden_size), np.float32)
        trained[encoder.name] = trained.get(encoder.name, {}) | {PLACEHOLDER_EMBEDDING: embedding}
    return trained


def check_rank(base: BaseModel, config: Config) -> None:
    """Refuses a rank that no adapted layer of the base model has: a product of such adapters has a smaller one.

    Raises:
        UserError: the message names the largest rank.
    """
    lora = run_lora_spec(config.lora)
    if not lora or config.text.is_textual_inversion:
        return
    largest = 0
    for name in base.trainable_components(config.train.text_encoder):
        module = base.module(name)
        for layer in target_layers(module, name, config.lora_targets):
            *inputs, outputs = module.shapes[f"{layer}.kernel"].shape
            largest = max(largest, min(math.prod(inputs), outputs))
    if lora.rank > largest > 0:
        raise UserError(
            f"--lora.rank {lora.rank} is more than any adapted layer of this model has; set {largest} at most."
        )


def unused_parameters(base: BaseModel, trained: TrainedShapes) -> frozenset[str]:
    """Returns `<component>.<parameter>` of everything trained that nothing reads, so that it never has a gradient."""
    unused = set()
    for encoder in base.text.encoders:
        prefixes = base.text.unused_prefixes(encoder)
        names = trained.get(encoder.name, {})
        unused |= {f"{encoder.name}.{name}" for name in names if name.startswith(prefixes)}
    return frozenset(unused)


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
        total = sum(".lora_" in name for shapes in trained.values() for name in shapes)
        missing = total - len(lora_file.adapters)
        if missing:
            warn(f"{config.lora.init} has no values for {missing} of {total} trained tensors; those start afresh.")
    embeddings = init_embeddings(base, config, params)
    values: dict[str, AnyArrays] = {}
    for component, shapes in trained.items():
        whole = {name: params[component][name] for name in shapes if name in params[component]}
        adapters = {name: shape for name, shape in shapes.items() if ".lora_" in name}
        values[component] = whole | init_lora(params[component], adapters, config.seed)
        if PLACEHOLDER_EMBEDDING in shapes:
            values[component][PLACEHOLDER_EMBEDDING] = embeddings[component]
    return load_lora_init(values, lora_file, base) if lora_file else values


def init_embeddings(base: BaseModel, config: Config, params: Mapping[str, Params]) -> dict[str, np.ndarray]:
    """Returns text encoder -> (entries, d) embeddings of the placeholder tokens, and says what each starts as."""
    tokens = [token.text for token in base.text.placeholder_tokens]
    if not tokens:
        return {}
    assert isinstance(base.text, TextEncoders)  # others have no placeholder tokens
    initializers = [initializer_token(config.text, config.subjects, token) for token in tokens]
    embeddings = init_placeholder_embeddings(base.text, params, initializers)
    for token, initializer in zip(tokens, initializers, strict=True):
        info(f"placeholder token {token} starts as '{initializer}'")
    return embeddings


def init_placeholder_embeddings(
    text: TextEncoders, params: Mapping[str, Params], initializers: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns text encoder -> (entries, d) float32: for each placeholder token, its initializer's embeddings in turn.

    Args:
        initializers: a word of the vocabulary, or several, for each placeholder token.

    Raises:
        UserError: an initializer has no token, or is a placeholder token itself.
    """
    embeddings = {}
    for encoder in text.encoders:
        rows = []
        for token, initializer in zip(text.placeholder_tokens, initializers, strict=True):
            ids = encoder.tokenizer.token_ids(initializer)
            if not ids:
                raise UserError(f"--text.initializer-token {initializer!r} has no token; name a word, such as 'dog'.")
            if max(ids) >= encoder.config.vocab_size:
                raise UserError(
                    f"--text.initializer-token {initializer!r} is a placeholder token itself; "
                    "name a word, such as 'dog'."
                )
            table = params[encoder.name][TOKEN_EMBEDDING]
            known = to_host(jax.jit(lambda table, rows: table[rows])(table, np.asarray(ids))).astype(np.float32)
            rows.append(np.resize(known, (len(token.entries), known.shape[1])))
        embeddings[encoder.name] = np.concatenate(rows)
    return embeddings


def read_lora_init(base: BaseModel, config: Config, trained: TrainedShapes) -> LoraWeights:
    """Reads --lora.init and makes sure that this run can continue from it.

    Raises:
        UserError: its rank, its layers or its kind are not this run's.
    """
    path, rank = config.lora.init, config.lora.rank or 0
    assert path is not None
    modules = {name: base.module(name) for name in base.trainable_components()}
    lora = read_lora(path, modules, base.denoiser_config)
    expected = {f"{component}.{name}" for component, shapes in trained.items() for name in shapes}
    surplus = sorted(set(lora.adapters) - expected)
    if surplus:
        raise UserError(
            f"{path} holds {len(surplus)} adapter tensor(s) that this run does not train, such as {surplus[0]}; "
            "widen --lora.targets, or set --train.text-encoder or --lora.dora."
        )
    if config.lora.dora and not any(name.endswith(MAGNITUDE) for name in lora.adapters):
        raise UserError(f"{path} has no magnitudes, so it is no DoRA to continue from; leave --lora.dora out.")
    largest = max(value.shape[-1] for name, value in lora.adapters.items() if name.endswith(LORA_A))
    if largest > rank:
        raise UserError(f"{path} has rank {largest}, more than --lora.rank {rank}; raise it to {largest}.")
    return lora


def load_lora_init(values: dict[str, AnyArrays], lora: LoraWeights, base: BaseModel) -> dict[str, AnyArrays]:
    """Puts a file's adapters in the place of fresh ones.

    A smaller rank fills the first columns of A and rows of B. The file's own alpha / rank goes into B.

    Args:
        values: component -> fresh values, which are changed.
    """
    assert base.lora is not None
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


def shard_params(values: Mapping[str, Mapping[str, AnyArray]], mesh: Mesh) -> dict[str, Params]:
    """Puts trained values that are on the host onto the mesh by the partition rule, as float32."""
    sharding_of = param_shardings(mesh)

    def shard(name: str, value: AnyArray) -> jax.Array:
        if isinstance(value, jax.Array):
            return value
        array = np.asarray(value, np.float32)
        return jax.make_array_from_callback(array.shape, sharding_of(name, array.shape), lambda index: array[index])

    return {
        component: {name: shard(name, value) for name, value in params.items()} for component, params in values.items()
    }
