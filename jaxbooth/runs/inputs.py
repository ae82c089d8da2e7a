"""What a run finds on disk before it reads any weights, checked, and the class images that it generates."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.adapters import check_adapters, read_lora_init
from jaxbooth.base.encoded_prompts import EncodedPrompts
from jaxbooth.base.model import BaseModel, check_resolution
from jaxbooth.base.sampling import ImageSampler, configured_sampling
from jaxbooth.base.trainable import trained_shapes
from jaxbooth.config.prior import PriorConfig
from jaxbooth.config.rules import check_schedule
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import info, pluralize, warn
from jaxbooth.data.buckets import enlargement_factor, group_by_bucket
from jaxbooth.data.caption_variants import with_variants
from jaxbooth.data.class_captions import with_class_captions
from jaxbooth.data.class_images import ClassImages, generate_missing, open_all_class_images
from jaxbooth.data.crops import CropSpec
from jaxbooth.data.decoding import read_header
from jaxbooth.data.images import ImageFile, ImageFolder, has_mask, scan_folder
from jaxbooth.diffusion.timestep_grid import check_steps
from jaxbooth.distributed.run_scope import is_writer
from jaxbooth.errors import UserError
from jaxbooth.params import Params
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.held_out_images import split_subjects
from jaxbooth.runs.unused_files import warn_unused
from jaxbooth.sharding import batch_shards
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.diffusers_read import find_tensors

MAX_ENLARGEMENT = 1.5  # in each direction; beyond it, what is learned is blurred
BUCKET_STEP = 64  # pixels


@dataclass(frozen=True)
class RunInputs:
    """What was found on disk before any weight is read.

    Attributes:
        instances: image folder of each subject.
        classes: class folders; `class_of` says which one goes with each subject. Empty without a prior term.
        shapes: (height, width) -> images of each subject in that shape.
        held_out: images of each subject that are not trained on; their loss is measured.
    """

    base: BaseModel
    instances: list[ImageFolder]
    classes: list[ClassImages]
    class_of: list[int]
    shapes: dict[tuple[int, int], list[list[ImageFile]]]
    held_out: list[list[ImageFile]] = field(default_factory=list)

    @property
    def images(self) -> list[ImageFile]:
        """Instance images of all subjects."""
        return [image for folder in self.instances for image in folder.images]

    @property
    def held_out_images(self) -> list[ImageFile]:
        """Held-out images of all subjects."""
        return [image for images in self.held_out for image in images]


def read_inputs(config: Config, base: BaseModel) -> RunInputs:
    """Scans the images, opens everything that could turn out unusable later, and says what the run will do."""
    check_model(config, base)
    return scan_inputs(config, base)


def scan_inputs(config: Config, base: BaseModel) -> RunInputs:
    """Does what `read_inputs` does of a model that was checked already."""
    instances = [scan_subject(config, index) for index in range(len(config.subjects))]
    for subject, folder in zip(config.subjects, instances, strict=True):
        skipped = f", {pluralize(folder.skipped, 'other file')} skipped" if folder.skipped else ""
        info(f"instance: {pluralize(len(folder.images), 'image')} in {subject.instance_dir}{skipped}")
        warn_unused(folder, subject.instance_dir)
    instances, held_out = split_subjects(config, instances)
    instance_files = [file for folder in instances for file in folder.images]
    check_placeholder_captions(config.text.placeholder_tokens, instance_files)
    if config.data.masks:
        check_masks(instance_files)
    instances = add_class_captions(config, instances)
    classes, class_of = open_classes(config, base)
    shapes = group_by_shape(base.resolution_multiple, config.resolution, config.data.buckets, instances)
    return RunInputs(base, instances, classes, class_of, shapes, held_out)


def check_model(config: Config, base: BaseModel) -> None:
    """Checks that the base model has weights, and that the configuration suits it.

    Raises:
        UserError: it does not.
    """
    check_resolution(base, config.resolution, "--data.resolution")
    check_schedule(config, base.schedule)
    check_steps(base.schedule, config.validation.steps, "--validation.steps")
    if config.prior.uses_class_images:
        check_steps(base.schedule, config.prior.steps, "--prior.steps")
    for component in base.components:
        find_tensors(base.folder / component, base.module(component))
    trained = trained_shapes(base, config)
    check_adapters(base, config)
    if config.lora.init:
        read_lora_init(base, config, trained)


def scan_subject(config: Config, index: int) -> ImageFolder:
    """Lists the images of one subject, with their captions as they are trained with."""
    subject, several = config.subjects[index], bool(config.data.subjects)
    key = f"data.subjects, entry {index + 1}: instance_dir" if several else "--data.instance-dir"
    folder = scan_folder(subject.instance_dir, subject.instance_prompt, key, config.data.masks)
    return replace(folder, images=[with_variants(file, config.text, config.seed) for file in folder.images])


def check_placeholder_captions(tokens: Sequence[str], files: Sequence[ImageFile]) -> None:
    """Raises UserError for a placeholder token that no instance caption has, so that nothing would teach it."""
    for token in tokens:
        if not any(token in caption for file in files for caption in file.captions):
            raise UserError(
                f"--text.placeholder-tokens {token}: no instance caption has this word; write it in the prompt."
            )


def add_class_captions(config: Config, instances: Sequence[ImageFolder]) -> list[ImageFolder]:
    """Adds to each subject's images their captions without the identifier, where output preservation needs them."""
    if not config.prior.has_own_captions:
        return list(instances)
    shared = config.prior.class_caption
    return [
        replace(folder, images=[with_class_captions(file, subject, config.text, shared) for file in folder.images])
        for subject, folder in zip(config.subjects, instances, strict=True)
    ]


def check_masks(files: Sequence[ImageFile]) -> None:
    """Raises UserError where no image has a mask."""
    if not any(has_mask(file.path) for file in files):
        raise UserError("--data.masks: no image has a mask, neither <stem>.mask.png beside it nor an alpha channel.")


def open_classes(config: Config, base: BaseModel) -> tuple[list[ClassImages], list[int]]:
    """Opens the class folders, where class images are used, and says what they hold; see `open_all_class_images`."""
    if not config.prior.uses_class_images:
        return [], [0] * len(config.subjects)
    classes, class_of = open_all_class_images(
        base, config.model, config.data, config.prior, config.subjects, config.run_dir
    )
    for class_images in classes:
        info(f"class images: {class_images.summary()}")
    started = [class_images for class_images in classes if class_images.found]
    for class_images, folder in zip(started, scan_class_folders(config.text.placeholder_tokens, started), strict=True):
        warn_unused(folder, class_images.folder)
    return classes, class_of


def group_by_shape(
    resolution_multiple: int, side: int, buckets: bool, instances: Sequence[ImageFolder]
) -> dict[tuple[int, int], list[list[ImageFile]]]:
    """Groups every subject's images by the shape that they are trained in: one square, or aspect-ratio buckets."""
    multiple = bucket_multiple(resolution_multiple, side)
    shapes: dict[tuple[int, int], list[list[ImageFile]]] = {}
    factors: dict[Path, float] = {}
    for subject, folder in enumerate(instances):
        sizes = [read_header(file.path).size for file in folder.images]
        square = {(side, side): list(range(len(sizes)))}
        groups = group_by_bucket(sizes, side, multiple) if buckets else square
        for shape, members in groups.items():
            subjects = shapes.setdefault(shape, [[] for _ in instances])
            subjects[subject] = [folder.images[member] for member in members]
            factors |= {folder.images[member].path: enlargement_factor(sizes[member], shape) for member in members}
    warn_small_images(factors)
    shapes = dict(sorted(shapes.items()))
    if buckets:
        counts = [f"{width} x {height} ({sum(map(len, files))})" for (height, width), files in shapes.items()]
        info(f"buckets: {', '.join(counts)}")
    if len(shapes) > 1:
        info(f"the train step will be compiled {len(shapes)} times, once for each bucket")
    return shapes


def bucket_multiple(multiple: int, side: int) -> int:
    """Returns what the sides of buckets are multiples of, in pixels.

    Args:
        multiple: that the base model needs.
    """
    # Coarser steps than the model needs keep the number of compiled programs small.
    return multiple * (max(1, BUCKET_STEP // multiple) if side >= 4 * BUCKET_STEP else 1)


def warn_small_images(factors: dict[Path, float]) -> None:
    """Warns once about all images that are enlarged a lot, given every image's factor, and names the worst."""
    small = [path for path, factor in factors.items() if factor > MAX_ENLARGEMENT]
    if small:
        worst = max(small, key=lambda path: factors[path])
        warn(
            f"{len(small)} of {len(factors)} image(s) are too small and will look blurred, {worst.name} most "
            f"(enlarged {factors[worst]:.1f} times); use larger ones or lower --data.resolution."
        )


def crop_spec(config: Config, shape: tuple[int, int]) -> CropSpec:
    """Returns how images of a shape are cropped."""
    data = config.data
    return CropSpec(*shape, data.random_crops if data.crop == "random" else 0, data.flip, config.seed)


def record_images(run: RunFolder, groups: dict[str, list[ImageFile]]) -> None:
    """Records which images a run uses, and warns when a continued run finds others, which changes its rows."""
    names = {kind: [image.path.name for image in images] for kind, images in groups.items()}
    remedy = "put it back, or remove it to take the images that are there now"
    if run.images.exists() and read_json(run.images, remedy) != names:
        warn(f"the images are not those that {run.root} was started with; later steps will see other rows.")
    if is_writer():
        write_json(run.images, names)


def generate_all_class_images(
    config: Config,
    base: BaseModel,
    params: dict[str, Params],
    classes: Sequence[ClassImages],
    mesh: Mesh,
    encoded: EncodedPrompts | None,
) -> None:
    """Generates what is missing of the class images of a run.

    Args:
        encoded: see `ImageSampler`.
    """
    sampler = class_image_sampler(base, config.prior, config.resolution, mesh, encoded)
    for class_images in classes:
        generate_class_images(params, class_images, config.prior.seed, sampler)


def class_image_sampler(
    base: BaseModel, prior: PriorConfig, resolution: int, mesh: Mesh, encoded: EncodedPrompts | None = None
) -> ImageSampler:
    """Returns what samples class images.

    Args:
        encoded: see `ImageSampler`.
    """
    # A device's share is the same on any mesh, for the last bit of a product may depend on how many rows it has.
    batch_size = prior.sample_batch_size * batch_shards(mesh)
    return ImageSampler(base, mesh, configured_sampling(prior, resolution), batch_size, quiet=True, encoded=encoded)


def generate_class_images(
    params: dict[str, Params], classes: ClassImages, seed: int, image_sampler: ImageSampler
) -> None:
    """Generates the class images that are missing, with the frozen base model."""
    if not classes.missing:
        return
    prompt = classes.settings["prompt"]

    def generate(indices: list[int]) -> np.ndarray:
        return image_sampler.generate(params, [prompt] * len(indices), seed, indices)

    generate_missing(classes, generate, image_sampler.batch_size)


def scan_class_folders(placeholder_tokens: Sequence[str], classes: Sequence[ClassImages]) -> list[ImageFolder]:
    """Scans every class folder.

    Raises:
        UserError: a caption of the user's own holds a placeholder token.
    """
    folders = [
        scan_folder(class_images.folder, class_images.settings["prompt"], "--data.class-dir")
        for class_images in classes
    ]
    for file in (file for folder in folders for file in folder.images):
        for token in placeholder_tokens:
            if any(token in caption for caption in file.captions):
                raise UserError(
                    f"{file.path}: the caption of this class image holds the placeholder token {token}; remove it."
                )
    return folders
