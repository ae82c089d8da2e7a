"""From a configuration to everything that the loop needs: images, weights, class images, latents."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from jaxbooth.base.identifier import MANY_MORE, find_identifier, prompt_words, suggest_identifiers, token_texts
from jaxbooth.base.model import BaseModel, check_resolution
from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.base.text_encoder import warn_about_truncation
from jaxbooth.base.tokenizer import Tokenizer
from jaxbooth.base.trainable import check_rank, read_lora_init, trained_shapes
from jaxbooth.config.rules import check_schedule
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject
from jaxbooth.config.subjects import noun_phrase
from jaxbooth.console.messages import info, is_main, pluralize, warn
from jaxbooth.data.buckets import enlargement_factor, group_by_bucket
from jaxbooth.data.class_images import ClassImages, generate_missing, open_all_class_images
from jaxbooth.data.crops import CropSpec, load_augmentations
from jaxbooth.data.file_names import listed
from jaxbooth.data.image_grid import image_grid, shrink
from jaxbooth.data.images import ImageFile, ImageFolder, describe_unused, load_image, scan_folder
from jaxbooth.diffusion.samplers import make_timestep_grid
from jaxbooth.errors import UserError
from jaxbooth.params import Params
from jaxbooth.runs.folder import RunFolder
from jaxbooth.sharding import batch_shards
from jaxbooth.storage.files import write_json, write_png
from jaxbooth.storage.text import read_json
from jaxbooth.training.layout import unpadded_batch_size
from jaxbooth.weights.diffusers_read import find_tensors

CONTACT_SHEET_COLUMNS, MAX_TILES = 5, 200
TILE_SIDE = 256  # pixels of a tile's longer side
MAX_ENLARGEMENT = 1.5  # in each direction; beyond it, what is learned is blurred
BUCKET_STEP = 64  # pixels


@dataclass(frozen=True)
class RunInputs:
    """What was found on disk before any weight is read.

    Attributes:
        instances: images of each subject.
        classes: class folders; `class_of` says which one goes with each subject. Empty without a prior term.
        shapes: (height, width) -> images of each subject in that shape.
    """

    base: BaseModel
    instances: list[ImageFolder]
    classes: list[ClassImages]
    class_of: list[int]
    shapes: dict[tuple[int, int], list[list[ImageFile]]]

    @property
    def images(self) -> list[ImageFile]:
        """Instance images of all subjects."""
        return [image for folder in self.instances for image in folder.images]


def read_inputs(config: Config, base: BaseModel) -> RunInputs:
    """Scans the images, opens everything that could turn out unusable later, and says what the run will do."""
    check_resolution(base, config.resolution, "--data.resolution")
    check_schedule(config, base.schedule)
    make_timestep_grid(base.schedule, config.validation.sampler, config.validation.steps, "--validation.steps")
    if config.prior_rows:
        make_timestep_grid(base.schedule, config.prior.sampler, config.prior.steps, "--prior.steps")
    for component in base.components:
        find_tensors(base.folder / component, base.module(component))
    trained = trained_shapes(base, config)
    check_rank(base, config)
    if config.lora.init:
        read_lora_init(base, config, trained)
    instances = [scan_subject(config, index) for index in range(len(config.subjects))]
    for index, folder in enumerate(instances):
        skipped = f", {pluralize(folder.skipped, 'other file')} skipped" if folder.skipped else ""
        info(f"instance: {pluralize(len(folder.images), 'image')} in {config.subjects[index].instance_dir}{skipped}")
        warn_unused(folder, config.subjects[index].instance_dir)
    check_placeholder_captions(config, instances)
    check_masks(config, instances)
    classes, class_of = open_all_class_images(config, base) if config.prior_rows else ([], [0] * len(instances))
    for classset in classes:
        info(f"prior on, weight {config.train.prior_weight}: {classset.summary()}")
    if not classes:
        info("prior off: the model may forget the class")
    started = [classset for classset in classes if classset.found]
    for classset, folder in zip(started, scan_class_folders(config, started), strict=True):
        warn_unused(folder, classset.folder)
    return RunInputs(base, instances, classes, class_of, group_by_shape(config, base, instances))


def scan_subject(config: Config, index: int) -> ImageFolder:
    """Lists the images of one subject."""
    subject, several = config.subjects[index], bool(config.data.subjects)
    key = f"data.subjects, entry {index + 1}: instance_dir" if several else "--data.instance-dir"
    return scan_folder(subject.instance_dir, subject.instance_prompt, key, config.data.masks)


def warn_unused(folder: ImageFolder, path: Path) -> None:
    """Warns of files in a folder of images that somebody may expect to be used, with the reason for each."""
    names = describe_unused(folder.unused)
    if names:
        warn(f"{path}: not used: {names}.")
    if folder.overruled:
        warn(f"{path}: metadata has the captions of these images, so not used: {listed(folder.overruled)}.")


def check_placeholder_captions(config: Config, instances: list[ImageFolder]) -> None:
    """Raises UserError for a placeholder token that no caption has, so that nothing would teach it."""
    captions = [image.caption for folder in instances for image in folder.images]
    for word in config.text.placeholder_tokens:
        if not any(word in caption for caption in captions):
            raise UserError(
                f"--text.placeholder-tokens {word}: no instance caption has this word; write it in the prompt."
            )


def check_masks(config: Config, instances: list[ImageFolder]) -> None:
    """Raises UserError where masks are asked for and no image has one."""
    images = [image for folder in instances for image in folder.images]
    if config.data.masks and all(load_image(image.path, masked=True).mask is None for image in images):
        raise UserError("--data.masks: no image has a mask, neither <stem>.mask.png beside it nor an alpha channel.")


def group_by_shape(
    config: Config, base: BaseModel, instances: list[ImageFolder]
) -> dict[tuple[int, int], list[list[ImageFile]]]:
    """Groups every subject's images by the shape that they are trained in: one square, or aspect-ratio buckets."""
    side, multiple = config.resolution, base.resolution_multiple
    # Coarser steps than the model needs keep the number of compiled programs small.
    multiple *= max(1, BUCKET_STEP // multiple) if side >= 4 * BUCKET_STEP else 1
    shapes: dict[tuple[int, int], list[list[ImageFile]]] = {}
    factors: dict[Path, float] = {}
    for subject, folder in enumerate(instances):
        sizes = [load_image(image.path).size for image in folder.images]
        square = {(side, side): list(range(len(sizes)))}
        for shape, members in (group_by_bucket(sizes, side, multiple) if config.data.buckets else square).items():
            images = shapes.setdefault(shape, [[] for _ in instances])
            images[subject] = [folder.images[member] for member in members]
            factors |= {folder.images[member].path: enlargement_factor(sizes[member], shape) for member in members}
    warn_small_images(factors)
    if config.data.buckets:
        info(f"buckets: {', '.join(f'{w} x {h} ({sum(map(len, p))})' for (h, w), p in sorted(shapes.items()))}")
    if len(shapes) > 1:
        info(f"the train step will be compiled {len(shapes)} times, once for each bucket")
    return dict(sorted(shapes.items()))


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
    """Returns how images of a shape are cut."""
    data = config.data
    return CropSpec(*shape, data.random_crops if data.crop == "random" else 0, data.flip, config.seed)


def log_padding(config: Config, width: int, shards: int) -> None:
    """Says so where rows are computed for nothing, and which number would use them.

    Args:
        width: rows of a step, padding included.
    """
    train = config.train
    rows = train.batch_size + config.prior_rows
    if width > rows:
        prior = config.prior_rows if train.prior_batch_size is not None or not config.prior_rows else None
        better = unpadded_batch_size(train.batch_size, prior, train.gradient_accumulation_steps, shards)
        parts = (
            f"{train.gradient_accumulation_steps} micro-batches on {shards} devices"
            if train.gradient_accumulation_steps > 1
            else f"{shards} devices"
        )
        info(
            f"{rows} rows do not divide among {parts} and are padded to {width}, which changes no result; "
            f"--train.batch-size {better} would use what the padding costs."
        )


def log_prompts(config: Config, inputs: RunInputs) -> None:
    """Shows how each identifier is spelled in tokens, and what of any caption does not fit."""
    side = inputs.base.text
    used = {word for subject in config.subjects for word in prompt_words(subject.instance_prompt)}
    for subject in config.subjects:
        log_identifier(side.encoders[0].tokenizer, subject, used, has_prior=bool(config.prior_rows))
    captions = [image.caption for image in inputs.images]
    class_prompts = [subject.class_prompt or "" for subject in config.subjects]
    warn_about_truncation(side, [*captions, *class_prompts, *config.validation.prompts])


def log_identifier(tokenizer: Tokenizer, subject: Subject, used: Collection[str], has_prior: bool) -> None:
    """Shows how the rarest word that only the instance prompt has is spelled, and warns of one that will not bind well.

    Without a class prompt it is the first word of what the prompt shows.
    """
    suggested = suggest_identifiers(tokenizer, used)
    *others, last = [identifier.word for identifier in suggested]
    better = f"{', '.join(others)} or {last}"
    if subject.class_prompt:
        found = find_identifier(tokenizer, prompt_words(subject.instance_prompt), prompt_words(subject.class_prompt))
    else:
        found = find_identifier(tokenizer, prompt_words(noun_phrase(subject.instance_prompt))[:1], ())
    if found is None:
        if has_prior and not tokenizer.placeholder_tokens:
            warn(f"the instance prompt has no word that the class prompt lacks; give the subject a name, say {better}.")
        return
    info(f"identifier '{found.word}': {pluralize(len(found.ids), 'token')}, {token_texts(tokenizer, found)}")
    if len(found.ids) >= len(suggested[0].ids) + MANY_MORE:
        warn(
            f"'{found.word}' is {len(found.ids)} tokens for this model, and each means something to it; a rare "
            f"identifier of {len(suggested[0].ids)}, such as {better}, binds better."
        )
    if found.is_common:
        warn(f"'{found.word}' is a word that the model knows, and its meaning will mix with the subject; try {better}.")


def contact_sheet(config: Config, inputs: RunInputs) -> Image.Image:
    """Draws exactly what the model will see of the subjects: crops, transparency, orientation, masks, captions.

    The sheet holds the first MAX_TILES augmentations, at most TILE_SIDE pixels long each; every image is read all the
    same, so that none turns out damaged later.
    """
    tiles, captions, total = [], [], 0
    for shape, subjects in inputs.shapes.items():
        for images in subjects:
            augmentations = load_augmentations(images, crop_spec(config, shape), config.data.masks)
            for image, seen in zip(images, augmentations, strict=True):
                kept = MAX_TILES - len(tiles)
                shown = zip(seen.pixels[:kept], seen.masks[:kept], strict=True)
                tiles += [shrink(shade(pixels, mask), TILE_SIDE) for pixels, mask in shown]
                captions += [image.caption] * len(seen.pixels[:kept])
                total += len(seen.pixels)
    if total > len(tiles):
        info(f"the contact sheet shows {len(tiles)} of {total} augmentations and leaves {total - len(tiles)} out")
    return image_grid(tiles, captions, min(CONTACT_SHEET_COLUMNS, len(tiles)))


def shade(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Darkens what a mask leaves out."""
    return (pixels * (0.25 + 0.75 * mask[..., None])).astype(np.uint8)


def write_contact_sheet(run: RunFolder, image: Image.Image) -> None:
    """Saves the contact sheet."""
    if is_main():
        write_png(run.contact_sheet, image, {})
    info(f"contact sheet: {run.contact_sheet}")


def record_images(run: RunFolder, groups: dict[str, list[ImageFile]]) -> None:
    """Records which images a run uses, and warns when a continued run finds others, which changes its rows."""
    names = {kind: [image.path.name for image in images] for kind, images in groups.items()}
    remedy = "put it back, or remove it to take the images that are there now"
    if run.images.exists() and read_json(run.images, remedy) != names:
        warn(f"the images are not those that {run.root} was started with; later steps will see other rows.")
    if is_main():
        write_json(run.images, names)


def make_class_images(
    config: Config, base: BaseModel, params: dict[str, Params], classes: ClassImages, mesh: Mesh
) -> None:
    """Generates the class images that are missing, with the frozen base model."""
    if not classes.missing:
        return
    chosen = config.prior
    settings = SamplingConfig(chosen.sampler, chosen.steps, chosen.guidance_scale, config.resolution)
    # A device's share is the same on any mesh, for the last bit of a product may depend on how many rows it has.
    image_sampler = ImageSampler(base, mesh, settings, chosen.batch_size * batch_shards(mesh), quiet=True)
    prompt = classes.settings["prompt"]

    def generate(indices: list[int]) -> np.ndarray:
        return image_sampler.generate(params, [prompt] * len(indices), chosen.seed, indices)

    generate_missing(classes, generate, image_sampler.batch_size)


def class_image_files(config: Config, classes: list[ClassImages]) -> list[list[ImageFile]]:
    """Lists the images of every class folder, see `scan_class_folders`."""
    return [folder.images for folder in scan_class_folders(config, classes)]


def scan_class_folders(config: Config, classes: list[ClassImages]) -> list[ImageFolder]:
    """Scans every class folder.

    Raises:
        UserError: a caption of the user's own holds a placeholder token.
    """
    found = [scan_folder(classset.folder, classset.settings["prompt"], "--data.class-dir") for classset in classes]
    for image in (image for folder in found for image in folder.images):
        for word in config.text.placeholder_tokens:
            if word in image.caption:
                raise UserError(
                    f"{image.path}: the caption of this class image holds the placeholder token {word}; remove it."
                )
    return found
