"""Prepares images for CLIP and DINO as `preprocessor_config.json` in the model's folder says.

The steps are those of transformers' image processors in their PIL form (`image_processing_backends.py`, `PilBackend`):
resize, center crop, scale to [0, 1], normalise.
"""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field, PositiveFloat
from pydantic.dataclasses import dataclass

from jaxbooth.errors import UserError
from jaxbooth.storage.paths import ascii_repr
from jaxbooth.storage.text import read_json
from jaxbooth.storage.typed import STRICT, JsonList, validate

FILES = ("preprocessor_config.json", "processor_config.json")  # the second since transformers 5, around the first
PROCESSOR = re.compile(r"(?P<processor>\w+?)(FeatureExtractor|ImageProcessor(Fast|Pil)?)")
CROPPING = {  # defaults of keys that a file leaves out, by processor
    "size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True,
    "resample": Image.Resampling.BICUBIC.value,
    "image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711),
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": CROPPING,
    "Bit": CROPPING,
    "ViT": {"size": {"height": 224, "width": 224}, "resample": Image.Resampling.BILINEAR.value,
            "image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},
}  # fmt: skip
Pixels = Annotated[int, Field(ge=1, le=2**12)]
Size = Pixels | Annotated[JsonList[Pixels], Field(min_length=2, max_length=2)] | dict[str, Pixels | None]
Channels = Annotated[JsonList[float], Field(min_length=3, max_length=3)]
PROCESSOR_OF = {"clip": "CLIP", "vit": "ViT", "dinov2": "Bit"}  # by model type, where the file does not name it


@dataclass(frozen=True, config=STRICT)
class ProcessorConfig:
    """The keys of `preprocessor_config.json`."""

    do_resize: bool = True
    size: Size | None = None
    do_center_crop: bool = False
    crop_size: Size | None = None
    resample: Annotated[int, Field(ge=0, le=5)] = Image.Resampling.BILINEAR.value
    do_rescale: bool = True
    rescale_factor: Annotated[float, Field(gt=0, le=1)] = 1 / 255
    do_normalize: bool = True
    image_mean: float | Channels = 0.5
    image_std: PositiveFloat | Annotated[JsonList[PositiveFloat], Field(min_length=3, max_length=3)] = 0.5


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The steps in their order; None leaves one out.

    Attributes:
        resize_to: height and width, or the shorter side alone, in pixels.
        crop_to: height and width in pixels.
        resample: Pillow's filter.
        scale: factor on 8-bit values.
        mean, std: of each channel.
    """

    resize_to: tuple[int, int] | int | None
    crop_to: tuple[int, int] | None
    resample: Image.Resampling
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a prepared image."""
        size = self.crop_to or self.resize_to
        assert isinstance(size, tuple), "prepared images would differ in shape"
        return size

    def __call__(self, source: Image.Image | np.ndarray) -> np.ndarray:
        """Maps an image of any size, (h, w, 3) uint8 if an array, to (*size, 3) float32."""
        image = source if isinstance(source, Image.Image) else Image.fromarray(source)
        image = image.convert("RGB")
        if self.resize_to:
            height, width = self.resize_to if isinstance(self.resize_to, tuple) else scaled_shape(self.resize_to, image)
            image = image.resize((width, height), self.resample)
        pixels = np.asarray(image)
        if self.crop_to:
            pixels = center_crop(pixels, self.crop_to)
        scaled = (pixels.astype(np.float64) * self.scale).astype(np.float32)
        return (scaled - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)


def scaled_shape(side: int, image: Image.Image) -> tuple[int, int]:
    """Returns the height and width at which the shorter side has `side` pixels; the longer one is rounded down."""
    longer = int(side * max(image.size) / min(image.size))
    return (longer, side) if image.height > image.width else (side, longer)


def center_crop(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crops the middle of (h, w, 3) pixels to height and width; a smaller image gets a black border."""
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
    if not isinstance(raw, dict):
        raise UserError(f"{folder} holds no {FILES[0]}; fetch the model again.")
    class_name = str(raw.get("image_processor_type") or raw.get("feature_extractor_type") or "")
    match = PROCESSOR.fullmatch(class_name)
    processor = match["processor"] if match else class_name or PROCESSOR_OF[model_type]
    if processor not in DEFAULTS or raw.get("do_pad"):
        culprit = f"the processor {ascii_repr(class_name)}" if processor not in DEFAULTS else "do_pad"
        known = ", ".join(DEFAULTS)
        raise UserError(f"{file}: {culprit} is not supported; known are those of {known}, without padding.")
    values = DEFAULTS[processor] | {key: value for key, value in raw.items() if value is not None}
    return build_preprocessing(validate(ProcessorConfig, values, str(file)), file)


def build_preprocessing(config: ProcessorConfig, file: Path) -> Preprocessing:
    """Returns the steps of a configuration with all its keys.

    Raises:
        UserError: a size is of no known form, or prepared images would differ in shape.
    """
    is_square = config.crop_size is None  # a single number means both sides, else the shorter one
    resize_to = read_size(config.size, is_square, file) if config.do_resize else None
    crop_to = read_size(config.crop_size, True, file) if config.do_center_crop else None
    if not isinstance(crop_to or resize_to, tuple):
        raise UserError(f"{file} leaves images in different shapes; set do_center_crop, or a height and a width.")
    return Preprocessing(
        resize_to=resize_to,
        crop_to=crop_to if isinstance(crop_to, tuple) else None,
        resample=Image.Resampling(config.resample),
        scale=config.rescale_factor if config.do_rescale else 1.0,
        mean=per_channel(config.image_mean if config.do_normalize else 0.0),
        std=per_channel(config.image_std if config.do_normalize else 1.0),
    )


def per_channel(value: float | tuple[float, ...]) -> tuple[float, ...]:
    """Returns one number for each of three channels."""
    return value if isinstance(value, tuple) else (value,) * 3


def read_size(value: Any, is_square: bool, file: Path) -> tuple[int, int] | int:
    """Returns height and width, or the shorter side.

    Raises:
        UserError: it is neither.
    """
    if isinstance(value, int):
        return (value, value) if is_square else value
    if isinstance(value, tuple) and len(value) == 2:
        return value[0], value[1]
    match value:
        case {"height": int(height), "width": int(width)}:
            return height, width
        case {"shortest_edge": int(side)} if not value.get("longest_edge"):
            return side
    raise UserError(f"{file}: size {ascii_repr(value)} is not supported; expected height and width, or shortest_edge.")
