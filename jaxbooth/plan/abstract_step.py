"""The train step of a configuration as shapes: no weights, no images, no device memory."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings, TokenIds
from jaxbooth.base.trainable import add_trainable, fully_trained, trained_shapes, unused_parameters
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config, fill_defaults
from jaxbooth.config.schema import MeshConfig
from jaxbooth.data.latents import CachedImages, LatentCache
from jaxbooth.models.quantization import stored_shapes
from jaxbooth.params import Params
from jaxbooth.plan.hardware import Topology
from jaxbooth.sharding import AXES, AnyMesh, axis_sizes, param_shardings, replicated
from jaxbooth.storage.paths import local_path
from jaxbooth.training.batch import BatchSource
from jaxbooth.training.layout import SubjectSlices, subject_slices
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.reference import make_references
from jaxbooth.training.spec import TrainStepSpec, make_train_step_spec
from jaxbooth.training.state import TrainState, abstract_state
from jaxbooth.weights.architectures import PUBLISHED
from jaxbooth.weights.resolve import resolve_model
from jaxbooth.weights.skeleton import write_skeleton

IMAGES_OF_SUBJECT = 5  # as many as DreamBooth usually takes; the photos themselves are not looked at


class AbstractStep(NamedTuple):
    """Everything that a dispatch takes, as `jax.ShapeDtypeStruct`s with shardings.

    Attributes:
        frozen: component -> parameters that the step reads and does not train.
        resident: component -> parameters that stay on the devices beside the step, for the sample grids.
    """

    spec: TrainStepSpec
    state: TrainState
    frozen: dict[str, Params]
    resident: dict[str, Params]
    source: BatchSource
    key: Any


def abstract_base(config: Config, platform: str | None = None) -> tuple[Config, BaseModel]:
    """Reads a configuration's model, with its adapters and placeholder tokens, and fills in the resolution.

    Published models are known without network or files; a local folder needs no weights.

    Args:
        platform: tpu, gpu or cpu, which decides what `--train.dtype auto` is; default: this process's own.

    Raises:
        UserError: there is no such model.
    """
    text = config.text
    if platform and config.train.dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
        config = config.model_copy(update={"train": config.train.model_copy(update={"dtype": dtype})})

    def read(folder: Path, has_tokenizer: bool = True) -> BaseModel:
        base = BaseModel.read(folder, config.train.dtype, text.clip_skip, text.max_token_chunks, has_tokenizer)
        return add_trainable(base, config)

    folder = local_path(config.model)
    if config.model in PUBLISHED and not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            write_skeleton(PUBLISHED[config.model].name, Path(scratch))
            base = read(Path(scratch), has_tokenizer=False)
    else:
        base = read(folder if (folder / "model_index.json").exists() else resolve_model(config.source))
    return fill_defaults(config, base.native_resolution, base.sampling), base


def abstract_mesh(mesh: MeshConfig, topology: Topology) -> AbstractMesh:
    """Returns a mesh over devices that need not exist.

    Raises:
        UserError: the axes do not multiply to the number of devices; the message says which numbers would.
    """
    sizes = axis_sizes(mesh.data, mesh.fsdp, mesh.tensor, topology.devices)
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_step(config: Config, base: BaseModel, mesh: AnyMesh) -> AbstractStep:
    """Describes the real train step on a mesh; the devices of the mesh may be described ones too.

    Args:
        config: with its resolution.
        base: with the run's adapters and placeholder tokens.
    """
    trained = trained_shapes(base, config)
    whole, read_by_step = fully_trained(base, trained), base.trainable_components(config.trains_text)
    frozen = {name: abstract_params(base, mesh, name) for name in base.resident_components if name not in whole}
    in_step = {name: params for name, params in frozen.items() if name in read_by_step}
    resident = {name: params for name, params in frozen.items() if name not in read_by_step}
    in_step |= abstract_references(config, base, mesh, whole)
    slices = abstract_slices(config)
    rates = learning_rates(config)
    size = (config.resolution, config.resolution)
    optimizer = make_optimizer(config.train, rates, unused_parameters(base, trained))
    return AbstractStep(
        spec=make_train_step_spec(
            base, mesh, slices, optimizer, config.train, config.loss, config.prior, config.text, rates, size
        ),
        state=abstract_state(trained, optimizer, config.train.ema_decay is not None, mesh),
        frozen=in_step,
        resident=resident,
        source=abstract_source(config, base, slices, mesh),
        key=jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=replicated(mesh)),
    )


def abstract_references(config: Config, base: BaseModel, mesh: AnyMesh, whole: Sequence[str]) -> dict[str, Params]:
    """Describes the copies of what is trained that stay as they were before training; see `copy_references`."""
    shapes = {name: base.module(name).shapes for name in whole}

    def references(params: dict[str, Params]) -> dict[str, Params]:
        return make_references(base, params, config.needs_reference, config.is_anchored)

    abstract: Any = jax.eval_shape(references, shapes)
    return {component: on_mesh(params, mesh) for component, params in abstract.items()}


def abstract_params(base: BaseModel, mesh: AnyMesh, component: str) -> Params:
    """Describes the frozen parameters of a component, in the dtype that they are held in."""
    dtype = jnp.float32 if component == "vae" else base.dtype
    return on_mesh(stored_shapes(base.module(component).shapes, base.quantization_of(component), dtype), mesh)


def on_mesh(shapes: Mapping[str, Any], mesh: AnyMesh) -> Params:
    """Describes parameters that lie on the mesh as the partition rule says."""
    shard = param_shardings(mesh)
    params: Any = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shard(name, leaf.shape))
        for name, leaf in shapes.items()
    }
    return params


def replicate(tree: Any, mesh: AnyMesh) -> Any:
    """Describes arrays of which every device holds a copy."""
    everywhere = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), tree)


def abstract_slices(config: Config) -> SubjectSlices:
    """Lays out a usual number of images."""
    subjects = max(1, len(config.data.subjects))
    classes = [config.data.num_class_images] * subjects if config.prior.uses_class_images else []
    return subject_slices([IMAGES_OF_SUBJECT] * subjects, classes, list(range(subjects)), [1.0] * subjects)


def abstract_source(config: Config, base: BaseModel, slices: SubjectSlices, mesh: AnyMesh) -> BatchSource:
    """Describes where the step takes its rows from."""
    skipped: Any = jax.ShapeDtypeStruct((), jnp.int32)
    return BatchSource(abstract_latent_cache(config, base, slices, mesh), skipped)


def abstract_latent_cache(config: Config, base: BaseModel, slices: SubjectSlices, mesh: AnyMesh) -> LatentCache:
    """Describes the cached latents of square images, with one caption for each class.

    Each subject has one caption too, or each of its images has as many as the configuration asks for.
    """
    everywhere, data, text_config = replicated(mesh), config.data, config.text

    def leaf(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    images = sum(piece.count for piece in (*slices.instances, *slices.classes))
    augmentations = (data.random_crops if data.crop == "random" else 1) * (2 if data.flip else 1)
    latents = (images, augmentations, *base.latent_shape(config.resolution, config.resolution))
    masks = leaf(*latents[:-1], 1) if data.masks else None
    variants = text_config.caption_variants if text_config.varies_tags else 1
    instance_captions = len(slices.instances) * (IMAGES_OF_SUBJECT * variants if text_config.varies_tags else 1)
    own_captions = instance_captions if config.prior.has_own_captions else 0
    captions = instance_captions + len(slices.classes) + own_captions + config.needs_empty_caption
    ids: TokenIds = replicate(base.text.abstract_ids(captions), mesh)
    text: TextEmbeddings = replicate(base.text.abstract_embeddings(captions), mesh)
    return LatentCache(
        images=CachedImages(leaf(*latents), leaf(*latents), leaf(*latents[:2], 6), masks),
        caption=leaf(images, variants, dtype=jnp.int32),
        caption_counts=leaf(images, dtype=jnp.int32),
        text=ids if config.trains_text else text,
        frozen_text=text if config.trains_text and config.needs_reference else None,
        class_caption=leaf(images, variants, dtype=jnp.int32) if config.prior.has_own_captions else None,
    )


def persistent_bytes(step: AbstractStep) -> dict[str, int]:
    """Returns kind -> bytes that one device holds all through a run; `resident` ones are no arguments of the step."""
    return {
        "parameters": device_bytes((step.state.params, step.state.ema)),
        "optimizer": device_bytes(step.state.opt_state),
        "frozen": device_bytes(step.frozen),
        "resident": device_bytes(step.resident),
        "latents": device_bytes(step.source.cache),
    }


def device_bytes(tree: Any) -> int:
    """Returns the bytes of one device's parts of abstract arrays."""
    return sum(map(shard_bytes, jax.tree.leaves(tree)))


def shard_bytes(leaf: Any) -> int:
    """Returns the bytes of one device's part of an abstract array."""
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
