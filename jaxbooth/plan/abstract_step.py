"""The train step of a configuration as shapes: no weight, no picture, no device memory."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds
from jaxbooth.base.trainable import add_trainable, fully_trained, trained_shapes, unused_parameters
from jaxbooth.config.run_config import Config
from jaxbooth.data.latents import Bank, Encoded
from jaxbooth.params import Params
from jaxbooth.plan.topology import Topology
from jaxbooth.runs.folder import fill_resolution, state_of
from jaxbooth.sharding import AXES, AnyMesh, axis_sizes, param_shardings, replicated
from jaxbooth.storage.paths import local_path
from jaxbooth.training.layout import Streams, make_streams
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.state import TrainState
from jaxbooth.training.step import REFERENCE, Task, make_task
from jaxbooth.weights.architectures import PUBLISHED
from jaxbooth.weights.resolve import resolve_model
from jaxbooth.weights.skeleton import write_skeleton

IMAGES_OF_SUBJECT = 5  # of a subject, where nobody has looked


class AbstractStep(NamedTuple):
    """Everything that a dispatch takes, as `jax.ShapeDtypeStruct`s with shardings.

    Attributes:
        frozen: component -> parameters that the step reads and does not train.
        resident: component -> parameters that stay on the devices beside the step, for the sample grids.
    """

    task: Task
    tx: Any
    state: TrainState
    frozen: dict[str, Params]
    resident: dict[str, Params]
    bank: Bank


def abstract_base(config: Config, platform: str | None = None) -> tuple[Config, BaseModel]:
    """Reads a configuration's model, with its adapters and placeholder tokens, and fills in the resolution.

    SD 1.5, 2.1 and XL are known without network or files; a local folder needs no weights.

    Args:
        platform: tpu, gpu or cpu, which decides what `--train.dtype auto` is; default: this process's own.

    Raises:
        UserError: there is no such model.
    """
    text = config.text
    if platform and config.train.dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
        config = config.model_copy(update={"train": config.train.model_copy(update={"dtype": dtype})})

    def read(folder: Path) -> BaseModel:
        return add_trainable(BaseModel.read(folder, config.train.dtype, text.clip_skip, text.max_token_chunks), config)

    folder = local_path(config.model)
    if config.model in PUBLISHED and not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            write_skeleton(PUBLISHED[config.model].name, Path(scratch))
            base = read(Path(scratch))
    else:
        base = read(folder if (folder / "model_index.json").exists() else resolve_model(config.source))
    return fill_resolution(config, base), base


def abstract_mesh(config: Config, topology: Topology) -> AbstractMesh:
    """Returns the mesh of a configuration over devices that need not exist.

    Raises:
        UserError: the axes do not multiply to the number of devices; the message says which numbers would.
    """
    sizes = axis_sizes(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, topology.devices)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_step(config: Config, base: BaseModel, mesh: AnyMesh) -> AbstractStep:
    """Describes the real train step on a mesh; the devices of the mesh may be described ones too.

    Args:
        config: with its resolution.
        base: with the run's adapters and placeholder tokens.
    """
    trained = trained_shapes(base, config)
    whole, needed = fully_trained(base, trained), step_components(config, base)
    place = param_shardings(mesh)

    def described(name: str) -> Params:
        dtype = jnp.float32 if name == "vae" else base.dtype
        shapes: Any = {
            leaf: jax.ShapeDtypeStruct(shape.shape, dtype, sharding=place(leaf, shape.shape))
            for leaf, shape in base.module(name).shapes.items()
        }
        return shapes

    frozen = {name: described(name) for name in base.components if name not in whole}
    step_reads = {name: params for name, params in frozen.items() if name in needed}
    resident = {name: params for name, params in frozen.items() if name not in needed}
    if base.denoiser_name in whole and config.loss.prior_target == "frozen":
        step_reads[REFERENCE] = described(base.denoiser_name)
    streams = abstract_slices(config)
    task = make_task(base, config, streams, mesh)
    state = state_of(config, base, mesh)
    tx = make_optimizer(config, unused_parameters(base, trained))
    return AbstractStep(task, tx, state, step_reads, resident, abstract_latent_cache(config, base, streams, mesh))


def step_components(config: Config, base: BaseModel) -> set[str]:
    """Returns the components whose parameters the step reads."""
    return set(base.trainable_components(config.trains_text))


def abstract_slices(config: Config) -> Streams:
    """Lays out a usual number of pictures."""
    subjects = max(1, len(config.data.subjects))
    classes = [config.data.num_class_images] * subjects if config.prior_rows else []
    return make_streams([IMAGES_OF_SUBJECT] * subjects, classes, list(range(subjects)), [1.0] * subjects)


def abstract_latent_cache(config: Config, base: BaseModel, streams: Streams, mesh: AnyMesh) -> Bank:
    """Describes the bank of `streams`: square pictures, one caption for each subject and each class."""
    everywhere, data = replicated(mesh), config.data

    def leaf(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    variants = (data.random_crops if data.crop == "random" else 1) * (2 if data.flip else 1)
    pictures = sum(span.count for span in (*streams.instances, *streams.classes))
    latents = (pictures, variants, *base.latent_shape(config.resolution, config.resolution))
    masks = leaf(*latents[:-1], 1) if data.masks else None
    captions = len(streams.instances) + len(streams.classes) + (config.text.caption_dropout > 0)
    tower, chunks = base.text.encoders[-1], config.text.max_token_chunks
    pooled = leaf(captions, tower.config.projection_dim) if base.text.conditioning.has_pooled else None
    text = TextEmbeddings(leaf(captions, chunks * tower.tokenizer.max_length, base.text.width), pooled)
    ids: TokenIds = {
        t.name: leaf(captions, chunks, t.tokenizer.max_length, dtype=jnp.int32) for t in base.text.encoders
    }
    keeps_text = config.trains_text and config.loss.prior_target == "frozen" and config.prior_rows
    return Bank(
        Encoded(leaf(*latents), leaf(*latents), leaf(*latents[:2], 6), masks),
        leaf(pictures, dtype=jnp.int32),
        ids if config.trains_text else text,
        leaf(2, dtype=jnp.uint32),
        text if keeps_text else None,
    )
