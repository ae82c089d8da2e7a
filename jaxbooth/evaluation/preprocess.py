"""From a picture to the pixels that a network was trained on, as its folder's `preprocessor_config.json` says.

What transformers' image processors do in their PIL form (`image_processing_backends.py`, `PilBackend`): resize, crop
the middle, scale to [0, 1], normalise.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxbooth.errors import UserError
from jaxbooth.storage.text import read_json

FILES = ("preprocessor_config.json", "processor_config.json")  # the second since transformers 5, around the first
PROCESSOR = re.compile(r"(?P<kind>\w+?)(FeatureExtractor|ImageProcessor(Fast|Pil)?)")
CROPPED = {  # what a file of these kinds leaves out
    "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": Image.Resampling.BICUBIC,
    "image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711),
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": CROPPED,
    "Bit": CROPPED,
    "ViT": {"size": {"height": 224, "width": 224}, "resample": Image.Resampling.BILINEAR,
            "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},
}  # fmt: skip
PROCESSOR_OF = {"clip": "CLIP", "vit": "ViT", "dinov2": "Bit"}  # of models whose file does not name it


@dataclass(frozen=True)
class Preprocessing:
    """The steps in their order; None leaves one out.

    Attributes:
        resized: height and width, or the shorter side alone, in pixels.
        cropped: height and width in pixels.
        resample: Pillow's filter.
        scale: factor on 8-bit values.
        mean, std: of each channel.
    """

    resized: tuple[int, int] | int | None
    cropped: tuple[int, int] | None
    resample: Image.Resampling
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        size = self.cropped or self.resized
        assert isinstance(size, tuple), "pictures would keep shapes of their own"
        return size

    def __call__(self, picture: Image.Image | np.ndarray) -> np.ndarray:
        """Maps a picture of any size, (h, w, 3) uint8 if an array, to (*size, 3) float32."""
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image = image.convert("RGB")
        if self.resized:
            height, width = self.resized if isinstance(self.resized, tuple) else shorter_to(self.resized, image)
            image = image.resize((width, height), self.resample)
        pixels = np.asarray(image)
        if self.cropped:
            pixels = middle(pixels, self.cropped)
        scaled = (pixels.astype(np.float64) * self.scale).astype(np.float32)
        return (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


def shorter_to(side: int, image: Image.Image) -> tuple[int, int]:
    """Returns the height and width at which the shorter side has `side` pixels; the longer one is rounded down."""
    longer = int(side * max(image.size) / min(image.size))
    return (longer, side) if image.height > image.width else (side, longer)


def middle(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cuts the middle out of (h, w, 3) pixels; what is too small gets a black border."""
    for axis, wanted in enumerate(size):
        missing = max(wanted - pixels.shape[axis], 0)
        border = [(0, 0)] * 3
        border[axis] = (-(-missing // 2), missing // 2)
        pixels = np.pad(pixels, border)
        start = (pixels.shape[axis] - wanted) // 2
        pixels = pixels.take(range(start, start + wanted), axis)
    return pixels


def read_preprocessing(folder: Path, model_type: str) -> Preprocessing:
    """Reads a folder's preprocessing.

    Args:
        model_type: of its `config.json`.

    Raises:
        UserError: there is no such file, or it asks for something that jaxbooth does not do.
    """
    plain, nested = (folder / name for name in FILES)
    file = plain if plain.exists() else nested
    raw = read_json(file) if file.exists() else None
    raw = raw if raw is None or file == plain else raw.get("image_processor")
    if raw is None:
        raise UserError(f"{folder} holds no {FILES[0]}; fetch the model again.")
    named = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "")
    match = PROCESSOR.fullmatch(named)
    kind = match["kind"] if match else named or PROCESSOR_OF[model_type]
    if kind not in DEFAULTS or raw.get("do_pad"):
        what = f"the processor {named}" if kind not in DEFAULTS else "do_pad"
        raise UserError(f"{file}: {what} is not supported; known are those of {', '.join(DEFAULTS)}, without padding.")
    try:
        return preprocessing_of(DEFAULTS[kind] | {key: value for key, value in raw.items() if value is not None}, file)
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}); fetch the model again.") from None


def preprocessing_of(raw: Mapping[str, Any], file: Path) -> Preprocessing:
    """Returns the steps that complete settings ask for.

    Raises:
        UserError: a size is of no known form, or pictures of different shapes would come out.
        ValueError, TypeError: a value is of no known form.
    """
    is_square = "crop_size" not in raw  # a single number means both sides, else the shorter one
    resized = read_size(raw["size"], is_square, file) if raw.get("do_resize", True) else None
    cropped = read_size(raw["crop_size"], True, file) if raw.get("do_center_crop") else None
    if not isinstance(cropped or resized, tuple):
        raise UserError(f"{file} leaves pictures in shapes of their own; set do_center_crop, or a height and a width.")
    normalizes = raw.get("do_normalize", True)
    return Preprocessing(
        resized=resized,
        cropped=cropped if isinstance(cropped, tuple) else None,
        resample=Image.Resampling(raw["resample"]),
        scale=float(raw.get("rescale_factor", 1 / 255)) if raw.get("do_rescale", True) else 1.0,
        mean=each_channel(raw["image_mean"] if normalizes else 0),
        std=each_channel(raw["image_std"] if normalizes else 1),
    )


def each_channel(value: Any) -> tuple[float, ...]:
    """Returns three numbers of three, or of one for all.

    Raises:
        ValueError: there are neither three nor one.
    """
    return tuple(np.broadcast_to(np.array(value, np.float64), 3).tolist())


def read_size(value: Any, is_square: bool, file: Path) -> tuple[int, int] | int:
    """Returns height and width, or the shorter side.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, int):
        return (value, value) if is_square else value
    if isinstance(value, list) and len(value) == 2:
        return value[0], value[1]
    match value:
        case {"height": int(height), "width": int(width)}:
            return height, width
        case {"shortest_edge": int(side)} if not value.get("longest_edge"):
            return side
    raise UserError(f"{file}: size {value!r} is not supported; expected height and width, or shortest_edge.")
