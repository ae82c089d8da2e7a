"""Which parameters a run trains: whole components, LoRA adapters, embeddings of placeholder tokens."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.adapters import TrainedShapes, load_lora_init, read_lora_init, run_lora_spec
from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING, TOKEN_EMBEDDING, TextEncoders
from jaxbooth.config.run_config import Config
from jaxbooth.config.subjects import initializer_token
from jaxbooth.console.messages import info, warn
from jaxbooth.distributed.arrays import to_host
from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import is_adapter
from jaxbooth.models.lora import init_lora, lora_shapes
from jaxbooth.models.lora_targets import target_layers
from jaxbooth.params import AnyArray, Params
from jaxbooth.sharding import param_shardings

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
        total = sum(is_adapter(name) for shapes in trained.values() for name in shapes)
        missing = total - len(lora_file.adapters)
        if missing:
            warn(f"{config.lora.init} has no values for {missing} of {total} trained tensors; those start afresh.")
    embeddings = init_embeddings(base, config, params)
    values: dict[str, AnyArrays] = {}
    for component, shapes in trained.items():
        whole = {name: params[component][name] for name in shapes if name in params[component]}
        adapters = {name: shape for name, shape in shapes.items() if is_adapter(name)}
        values[component] = whole | (
            init_lora(params[component], adapters, config.seed, base.lora) if base.lora else {}
        )
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
