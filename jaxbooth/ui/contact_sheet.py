"""The contact sheet of the form: what the model will see of each photo, by the code that a run uses, and its faults."""

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxbooth.assets import DEMO_SUBJECT
from jaxbooth.config.run_config import Config, fill_unset, resolve_paths
from jaxbooth.console.messages import collect_warnings
from jaxbooth.data.buckets import enlargement_factor
from jaxbooth.data.captions import caption_files
from jaxbooth.data.crops import CropSpec
from jaxbooth.data.decoding import read_header
from jaxbooth.data.image_grid import shrink
from jaxbooth.data.images import ImageFile, ImageFolder, image_files, list_folder, load_image
from jaxbooth.errors import UserError
from jaxbooth.runs.contact_sheet import TILE_SIDE, shade
from jaxbooth.runs.held_out_images import split_subjects
from jaxbooth.runs.inputs import crop_spec, group_by_shape, scan_subject
from jaxbooth.ui.base_models import ImageSides
from jaxbooth.ui.file_cache import version_of
from jaxbooth.ui.photo_facts import Cache, PhotoFacts, find_duplicates, read_facts
from jaxbooth.ui.roots import NotFound, Roots

MAX_PHOTOS = 60  # that are shown and looked at
MAX_CROPS = 4  # of a photo that are shown, each perhaps mirrored, too
MAX_TILE_PIXELS = 2**27  # of all shown augmentations of a photo, at the size of the training


class Shown(NamedTuple):
    """A photo on the sheet.

    Attributes:
        index: in its folder, which decides random crops.
        size: width and height of the file; None where it cannot be decoded.
        shape: height and width in which it is trained.
        captions: as they are trained with.
        own_caption: the text of its caption file; None where it has none that can be edited.
        spec: what is shown of it.
        marks: what may be wrong with it, in a few words each.
    """

    path: Path
    index: int
    size: tuple[int, int] | None
    shape: tuple[int, int]
    captions: tuple[str, ...]
    own_caption: str | None
    spec: CropSpec
    marks: tuple[str, ...]
    is_held_out: bool
    version: int

    @property
    def augmentations(self) -> int:
        """How many crops, mirrored ones included, are shown."""
        return max(1, self.spec.crops) * (1 + self.spec.flip)


class Sheet(NamedTuple):
    """The contact sheet.

    Attributes:
        total: photos, of which `photos` may be the first.
        notes: sentences about the folder.
    """

    photos: tuple[Shown, ...]
    total: int
    notes: tuple[str, ...]


class SheetMaker:
    """Makes contact sheets, and remembers what it has decoded.

    Args:
        roots: outside of them, nothing is read.
    """

    def __init__(self, roots: Roots):
        self._roots = roots
        self.turn = asyncio.Semaphore(1)  # for threads that only wait would be missed elsewhere
        self._facts, self._tiles = Cache(4 * MAX_PHOTOS), Cache(16)

    def make(self, config: Config, sides: ImageSides) -> Sheet:
        """Returns the contact sheet of a run's photos.

        Raises:
            UserError: a folder or a caption cannot be used.
            NotFound: a folder lies outside of the roots.
        """
        config = resolve_paths(config)
        config = config.model_copy(update={"data": fill_unset(config.data, {"resolution": sides.native})})
        for subject in config.subjects:
            for folder in (subject.instance_dir, subject.validation_dir):
                self.check_inside(folder or DEMO_SUBJECT)
        with collect_warnings() as notes:
            scanned = [scan_subject(config, index) for index in range(len(config.subjects))]
            trained, held_out = split_subjects(config, scanned)
            files = [file for folder in trained for file in folder.images]
            readable = [file for file in files if is_readable(file.path)]
            groups = group_by_shape(sides.multiple, config.resolution, config.data.buckets, only(trained, readable))
        shapes = {file.path: shape for shape, subjects in groups.items() for part in subjects for file in part}
        square = config.resolution, config.resolution
        held = [file for part in held_out for file in part]
        shown = [*files, *held][:MAX_PHOTOS]
        facts = [self.facts(file.path) for file in shown]
        duplicates = find_duplicates([fact.fingerprint for fact in facts if fact])
        known = [index for index, fact in enumerate(facts) if fact]
        same = {known[index]: shown[known[first]].path.name for index, first in duplicates.items()}
        photos = [
            self.show(config, file, fact, shapes.get(file.path, square), same.get(index), file in held)
            for index, (file, fact) in enumerate(zip(shown, facts, strict=True))
        ]
        return Sheet(tuple(photos), len(files) + len(held), tuple(note for note in notes if "too small" not in note))

    def show(
        self,
        config: Config,
        file: ImageFile,
        facts: PhotoFacts | None,
        shape: tuple[int, int],
        twin: str | None,
        is_held_out: bool,
    ) -> Shown:
        """Returns a photo with its marks."""
        spec = crop_spec(config, shape)
        spec = spec._replace(crops=min(spec.crops, MAX_CROPS)) if not is_held_out else CropSpec(*shape)
        marks = tuple(find_marks(facts, shape, twin)) + tuple(self.find_damage(file, facts, config.data.masks))
        own = self.own_caption(file.path)
        size = facts.size if facts else None
        version = version_of(file.path)
        return Shown(file.path, file.index, size, shape, file.captions, own, spec, marks, is_held_out, version)

    def check_inside(self, folder: Path) -> None:
        """Refuses a folder of photos outside of the roots, and links in it that lead out of them.

        Raises:
            NotFound: the folder lies outside.
            UserError: a link does; the message names it.
        """
        if folder == DEMO_SUBJECT:
            return
        self._roots.inside(folder)
        for path in list_folder(folder, "photos"):
            try:
                if path.is_symlink():
                    self._roots.inside(path)
            except NotFound:
                raise UserError(
                    f"{path.name} in {folder} is a link to something that this page may not read; replace it by the "
                    "file, or start jaxbooth ui with --folders."
                ) from None

    def facts(self, path: Path) -> PhotoFacts | None:
        """Returns what the pixels of a photo say; None where it cannot be decoded."""
        try:
            with collect_warnings():
                return self._facts.get((path, version_of(path)), lambda: read_facts(path))
        except (UserError, OSError):
            return None

    def find_damage(self, file: ImageFile, facts: PhotoFacts | None, masked: bool) -> list[str]:
        """Returns why a photo, or its mask, cannot be read."""
        if facts and not masked:
            return []
        try:
            with collect_warnings():
                load_image(file.path, masked)
        except (UserError, OSError) as error:
            return [str(error).replace(f"{file.path.parent}/", "")]
        return []

    def own_caption(self, photo: Path) -> str | None:
        """Returns the text of a photo's caption file, if its folder is one of uploaded photos; "" without a file."""
        folder = photo.parent
        if folder.parent != self._roots.photos or any(
            path.name.lower().startswith("metadata.") for path in folder.iterdir()
        ):
            return None
        files = caption_files(list_folder(folder, "photos"), [photo]).get(photo, [])
        return files[0].read_text(encoding="utf-8-sig").strip() if files else ""

    def tile(self, photo: Path, index: int, spec: CropSpec, masked: bool, number: int) -> bytes:
        """Returns one augmentation of a photo as it is trained on, reduced to TILE_SIDE pixels, as a PNG.

        Args:
            index: of the photo in its folder, which decides random crops.
            number: of the augmentation.

        Raises:
            UserError: the photo or its mask cannot be decoded, or this is more than is shown.
        """
        key = (photo, version_of(photo), index, spec, masked)
        tiles = self._tiles.get(key, lambda: make_tiles(photo, index, spec, masked))
        if not 0 <= number < len(tiles):
            raise UserError(f"{photo.name} has {len(tiles)} crops; reload the page.")
        return tiles[number]


def is_example(photo: Path) -> bool:
    """Whether this is one of the built-in subject's images, which lie in no root."""
    return photo.parent == DEMO_SUBJECT and photo in image_files(DEMO_SUBJECT)


def make_tiles(photo: Path, index: int, spec: CropSpec, masked: bool) -> list[bytes]:
    """Returns all augmentations of a photo as PNGs; see `SheetMaker.tile`."""
    shown = max(1, spec.crops) * (1 + spec.flip)
    if spec.crops > MAX_CROPS or shown * spec.height * spec.width > MAX_TILE_PIXELS:
        raise UserError(f"{spec.width} x {spec.height} pixels are too many to show; lower the resolution.")
    with collect_warnings():
        augmentations = spec.augment(load_image(photo, masked), index)
    pairs = zip(augmentations.pixels, augmentations.masks, strict=True)
    return [as_png(shrink(shade(pixels, mask), TILE_SIDE)) for pixels, mask in pairs]


def as_png(pixels: np.ndarray) -> bytes:
    """Returns an image as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def only(folders: Sequence[ImageFolder], files: Sequence[ImageFile]) -> list[ImageFolder]:
    """Returns folders with those of their images alone that are among `files`."""
    paths = {file.path for file in files}
    return [ImageFolder([file for file in folder.images if file.path in paths]) for folder in folders]


def is_readable(path: Path) -> bool:
    """Whether a photo's size can be read."""
    try:
        read_header(path)
    except (UserError, OSError):
        return False
    return True


def find_marks(facts: PhotoFacts | None, shape: tuple[int, int], twin: str | None) -> list[str]:
    """Returns what may spoil the training, in a few words each."""
    if facts is None:
        return []
    marks = [f"nearly the same as {twin}"] if twin else []
    factor = enlargement_factor(facts.size, shape)
    if factor > 1:
        marks.append(f"too small: enlarged {factor:.1f} times")
    return [*marks, "may be blurred"] if facts.may_be_blurred else marks
