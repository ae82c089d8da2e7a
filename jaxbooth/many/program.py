"""What the subjects of a program share: the base model, its weights, and everything that is compiled."""

import functools
import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from filelock import FileLock
from jax.sharding import Mesh

from jaxbooth.base.encoded_prompts import EncodedPrompts
from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.sampling import ImageSampler
from jaxbooth.base.trainable import TrainedShapes, trained_shapes, unused_parameters
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.run_config import Config
from jaxbooth.console.progress import progress
from jaxbooth.data.class_images import ClassImages, open_class_images
from jaxbooth.many.encoders import Encoders
from jaxbooth.params import Params, flatten_components
from jaxbooth.runs.inputs import class_image_sampler, generate_class_images
from jaxbooth.runs.validation import ValidationSampler, validation_image_sampler
from jaxbooth.sharding import batch_shards
from jaxbooth.training.layout import SubjectSlices
from jaxbooth.training.optimizer import make_optimizer, make_slot_optimizer, rate_groups
from jaxbooth.training.slots import make_slot_dispatch
from jaxbooth.training.spec import TrainStepSpec, make_train_step_spec
from jaxbooth.training.state import TrainState, build_state

NO_SLICES = SubjectSlices((), (), (), ())  # the rows of a slot are chosen on the host


@dataclass
class Program:
    """The shared part.

    Attributes:
        config: of all subjects, with defaults filled in; subjects replace their own keys.
        params: component -> frozen parameters.
        step_frozen: those of them that the step reads.
        class_sampler: of class images.
        locks: folder for locks on classes.
        dispatch: see `make_slot_dispatch`.
        build: masters of one subject -> its state at step 0.
        example: shapes and dtypes of such a state.
        base_images: prompts and seed -> what the base model makes of them.
        compiled: shapes of the arguments -> compiled dispatch.
    """

    config: Config
    base: BaseModel
    mesh: Mesh
    shapes: TrainedShapes
    params: dict[str, Params]
    step_frozen: dict[str, Params]
    encoders: Encoders
    image_sampler: ImageSampler
    class_sampler: ImageSampler
    locks: Path
    spec: TrainStepSpec
    dispatch: Any
    build: Any
    example: TrainState
    base_images: dict[tuple[tuple[str, ...], int], np.ndarray] = field(default_factory=dict)
    compiled: dict[str, Any] = field(default_factory=dict)

    def sample_base(self, sampler: ValidationSampler) -> np.ndarray:
        """Samples the base model; a subject's first images are those of any other with its prompts and seed."""
        key = (tuple(sampler.prompts), sampler.seed)
        if key not in self.base_images:
            self.base_images.clear()  # subjects that share them mostly follow one another
            self.base_images[key] = sampler.sample(self.params)
        return self.base_images[key]

    def compiled_for(self, *arguments: Any) -> Any:
        """Returns the compiled dispatch for arguments of such shapes; another number of captions takes another one."""
        shapes = str(jax.tree.map(lambda leaf: leaf.shape, arguments))
        if shapes not in self.compiled:
            with progress("compile", total=None) as bar:
                began = time.perf_counter()
                self.compiled[shapes] = self.dispatch.lower(*arguments).compile()
                bar.set_postfix(f"train step of {self.spec.slots} subjects, {time.perf_counter() - began:.1f} s")
        return self.compiled[shapes]

    def generate_class_images(self, classes: ClassImages) -> None:
        """Generates the images of a class that are missing; one process at a time, for they may share the folder."""
        if not classes.missing:
            return
        name = hashlib.blake2b(str(classes.folder).encode(), digest_size=8).hexdigest()
        with FileLock(self.locks / f"class-{name}.lock"):
            now = open_class_images(classes.folder, classes.settings, classes.total)
            generate_class_images(self.params, now, self.config.prior.seed, self.class_sampler)

    def first_state(self, values: dict[str, Any]) -> TrainState:
        """Returns the state of a subject at step 0, on the host.

        Args:
            values: component -> what is trained.
        """
        masters = {name: np.asarray(value, np.float32) for name, value in flatten_components(values).items()}
        return jax.device_get(self.build(masters))


def make_program(
    config: Config,
    base: BaseModel,
    mesh: Mesh,
    slots: int,
    subject: Config,
    encoded: EncodedPrompts | None,
    locks: Path,
) -> Program:
    """Loads the weights, and makes what will be compiled when it is first used.

    Args:
        config: see `Program`.
        base: with the adapters.
        slots: subjects that train side by side; `slots_for` gives a number that the mesh divides.
        subject: the configuration of any subject, which has prompts.
        encoded: all prompts, where the text encoder is dropped before the denoiser is loaded.
    """
    shapes, rates, keep_ema = trained_shapes(base, config), learning_rates(config), config.train.ema_decay is not None
    no_gradient = unused_parameters(base, shapes)
    optimizer = make_optimizer(config.train, rates, no_gradient)
    params = load_params(base, mesh, components=base.resident_components)
    side = config.resolution
    spec = make_train_step_spec(
        base, mesh, NO_SLICES, optimizer, config.train, config.loss, config.prior, config.text, rates, (side, side),
        slots,
    )  # fmt: skip
    optimizer_of = functools.partial(
        make_slot_optimizer, config.train, no_gradient=no_gradient, b_ratio=config.lora.b_rate_ratio
    )
    initial = optimizer_of(dict.fromkeys(rate_groups(rates), np.zeros((), np.float32)))
    build = jax.jit(lambda masters: build_state(masters, initial, keep_ema))
    step_components = set(base.trainable_components(config.trains_text))
    return Program(
        config=config,
        base=base,
        mesh=mesh,
        shapes=shapes,
        params=params,
        step_frozen={name: values for name, values in params.items() if name in step_components},
        encoders=Encoders(base, mesh, params, encoded),
        image_sampler=validation_image_sampler(subject, base, mesh, encoded),
        class_sampler=class_image_sampler(base, config.prior, side, mesh, encoded),
        locks=locks,
        spec=spec,
        dispatch=make_slot_dispatch(spec, optimizer_of, config.train.steps_per_dispatch),
        build=build,
        example=jax.eval_shape(build, flatten_components(shapes)),
    )


def slots_for(wanted: int, mesh: Mesh) -> int:
    """Returns the number of slots, at least as many as wanted, that the devices share evenly."""
    shards = batch_shards(mesh)
    return -(-wanted // shards) * shards
