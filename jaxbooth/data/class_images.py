"""Class images for the prior term, made by the frozen base model.

Image i depends on (seed, i) alone, so the set is the same whatever the batch, the devices or the interruptions.
`manifest.json` beside the images says what made them; a run that asks for something else stops instead of reusing
them. Images that a user put there are used and never touched.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject
from jaxbooth.console.messages import is_main
from jaxbooth.console.progress import progress
from jaxbooth.data.images import MANIFEST, image_files
from jaxbooth.errors import RunFailure, UserError, short_repr
from jaxbooth.storage.files import write_json, write_png
from jaxbooth.storage.paths import short_name
from jaxbooth.storage.remote import as_path
from jaxbooth.storage.text import read_json
from jaxbooth.weights.fingerprint import update_with_weights

MIN_CONTRAST = 3.0  # standard deviation over an image's 8-bit values; below it the image is a flat colour
SCHEDULER = Path("scheduler", "scheduler_config.json")
RECORDED_LATER = {"clip_skip": 0, "max_token_chunks": 1}  # what manifests without these keys were made with

GenerateBatch = Callable[[list[int]], np.ndarray]  # image numbers -> (n, H, W, 3) uint8


def fingerprint(folder: Path, components: tuple[str, ...]) -> str:
    """Identifies a base model by its schedule, and by the sizes and both ends of its weight files.

    Any training changes it, as does another prediction type.
    """
    digest = hashlib.sha256((folder / SCHEDULER).read_bytes())
    for component in components:
        update_with_weights(digest, folder / component, f"{component}/")
    return digest.hexdigest()[:16]


def generation_settings(config: Config, base: BaseModel, prompt: str) -> dict[str, Any]:
    """What decides the generated images, and is recorded with them."""
    return {
        "model": config.model,
        "model_fingerprint": fingerprint(base.folder, base.components),
        "prompt": prompt,
        "resolution": config.resolution,
        "sampler": config.prior.sampler,
        "steps": config.prior.steps,
        "guidance_scale": config.prior.guidance_scale,
        "clip_skip": config.text.clip_skip,
        "max_token_chunks": config.text.max_token_chunks,
        "seed": config.prior.seed,
    }


@dataclass
class ClassImages:
    """The state of a class folder.

    Attributes:
        folder: where the images are.
        user_files: images that jaxbooth did not make.
        generated: image number -> file name, or None for one that came out near-constant and was dropped.
        settings: what makes the images.
        total: images to have.
    """

    folder: Path
    user_files: list[str]
    generated: dict[int, str | None]
    settings: dict[str, Any]
    total: int

    @property
    def found(self) -> int:
        """Images that are there."""
        return len(self.user_files) + sum(name is not None for name in self.generated.values())

    @property
    def missing(self) -> int:
        """Images still to make."""
        return max(0, self.total - self.found)

    @property
    def dropped(self) -> int:
        """Images that came out near-constant."""
        return sum(name is None for name in self.generated.values())

    def summary(self) -> str:
        """What will happen, for the start line."""
        if not self.missing:
            return f"{self.found} class images found, none to generate"
        source = f"from {self.settings['model']}, prompt '{self.settings['prompt']}'"
        return f"{self.total} class images ({self.found} found, {self.missing} to generate {source})"


def class_folder(config: Config, subject: Subject) -> Path:
    """Returns where a subject's class images live.

    Without a folder of its own, it is the first that a subject with the same class prompt names, else one for each
    class prompt in the run's folder.
    """
    alike = [other.class_dir for other in config.subjects if other.class_prompt == subject.class_prompt]
    for folder in (subject.class_dir, *alike):
        if folder:
            return folder
    name = short_name(re.sub(r"\W+", "-", (subject.class_prompt or "").lower()).strip("-"))
    prior = as_path(config.run_dir) / "prior"
    return prior / name if config.data.subjects else prior


def open_all_class_images(config: Config, base: BaseModel) -> tuple[list[ClassImages], list[int]]:
    """Opens the class folders of a run, and says which one goes with each subject; equal classes share one.

    Raises:
        UserError: see `open_class_images`; or two classes would share a folder.
    """
    wanted = [(subject.class_prompt or "", class_folder(config, subject)) for subject in config.subjects]
    distinct = list(dict.fromkeys(wanted))
    folders = [folder for _, folder in distinct]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"{folder} would hold the images of several class prompts; set a class_dir for each.")
    sets = [open_class_images(config, base, prompt, folder) for prompt, folder in distinct]
    return sets, [distinct.index(pair) for pair in wanted]


def open_class_images(config: Config, base: BaseModel, prompt: str, folder: Path) -> ClassImages:
    """Reads a class folder and its manifest; neither needs to exist yet.

    Raises:
        UserError: the manifest's images were made in another way than the configuration asks for; see also
            `image_files`.
    """
    settings = generation_settings(config, base, prompt)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--data.class-dir: {folder} is a file; name a folder.")
    images = {path.name for path in image_files(folder)} if folder.is_dir() else set()
    generated: dict[int, str | None] = {}
    if (folder / MANIFEST).exists():
        recorded = read_manifest(folder / MANIFEST, settings)
        generated = {index: name for index, name in recorded.items() if name is None or name in images}
    return ClassImages(
        folder, sorted(images - set(generated.values())), generated, settings, config.data.num_class_images
    )


def read_manifest(path: Path, wanted: dict[str, Any]) -> dict[int, str | None]:
    """Returns image number -> file name of a manifest whose settings are the wanted ones.

    Raises:
        UserError: the file is something else, or other settings made its images.
    """
    try:
        manifest = read_json(path)
        settings, images = dict(manifest["settings"]), {int(key): name for key, name in manifest["images"].items()}
        if not all(name is None or isinstance(name, str) for name in images.values()):
            raise TypeError
    except (UserError, ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is not a manifest of class images; move it or set --data.class-dir.") from None
    check_settings(settings, wanted, path)
    return images


def check_settings(recorded: dict[str, Any], wanted: dict[str, Any], manifest: Path) -> None:
    """Raises UserError naming the first setting that differs; a moved but equal model is no difference."""
    for key, value in wanted.items():
        found = recorded.get(key, RECORDED_LATER.get(key))
        if key != "model" and found != value:
            raise UserError(
                f"{manifest}: these class images were made with {key} = {short_repr(found)}, but the run asks for "
                f"{value!r}; set --data.class-dir to another folder, change the setting back, or, to make them anew, "
                f"delete {manifest.name} and the class-*.png files beside it."
            )


def generate_missing(classes: ClassImages, generate: GenerateBatch, batch: int) -> None:
    """Makes the missing class images under a progress bar; an interruption loses at most one batch.

    Raises:
        RunFailure: the model keeps making near-constant images.
    """
    total = classes.total
    with progress("prior", total, done=classes.found) as bar:
        numbers = next_indices(classes.generated)
        while classes.missing:
            indices = [next(numbers) for _ in range(min(batch, classes.missing))]
            drawn = dict(zip(indices, generate(indices), strict=True))
            names = {index: file_name(index, pixels) for index, pixels in drawn.items()}
            refuse_user_files(classes, names)
            # The manifest goes first: an entry without its file is made again, a file without its entry would be
            # taken for the user's own.
            manifest = {"settings": classes.settings, "images": classes.generated | names}
            if is_main():
                write_json(classes.folder / MANIFEST, manifest)
            for index, name in names.items():
                save(classes, index, name, drawn[index])
                bar.advance(name is not None)
            bar.set_postfix(f"{classes.dropped} near-constant made anew" if classes.dropped else "")
            if classes.dropped > total + 16:
                raise RunFailure(
                    f"{classes.dropped} of {len(classes.generated)} class images came out near-constant; check the "
                    f"base model and --data.class-prompt '{classes.settings['prompt']}'."
                )


def next_indices(generated: dict[int, str | None]) -> Iterator[int]:
    """Yields image numbers that were not generated yet, in order."""
    number = 0
    while True:
        if number not in generated:
            yield number
        number += 1


def file_name(index: int, pixels: np.ndarray) -> str | None:
    """Returns the name to save an image under, or None if no channel of it varies much."""
    return None if pixels.std(axis=(0, 1)).max() < MIN_CONTRAST else f"class-{index:05d}.png"


def save(classes: ClassImages, index: int, name: str | None, pixels: np.ndarray) -> None:
    """Saves an image losslessly; a dropped one only counts."""
    classes.generated[index] = name
    if name and is_main():
        write_png(classes.folder / name, Image.fromarray(pixels), {**classes.settings, "index": index})


def refuse_user_files(classes: ClassImages, names: dict[int, str | None]) -> None:
    """Raises UserError if an image of the user's has a name that is about to be written."""
    for name in names.values():
        if name in classes.user_files:
            raise UserError(f"{classes.folder / name} is in the way of a class image of that name; rename it.")
