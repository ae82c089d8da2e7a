"""Embedded ICC profiles: the colors of an image file in sRGB, which is what the models know.

Relative colorimetric with black-point compensation, as image editors convert photos. Reference: ICC.1:2022.
"""

import functools
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from jaxbooth.console.messages import warn

ToSRGB = Callable[[Image.Image], Image.Image]  # an image in the profile's colors -> RGB

MAX_PROFILE_BYTES = 16 * 2**20
SAME = 2  # of 255: a profile that moves no color further is sRGB in another writing
MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's color space -> Pillow's mode
CARRIERS = {  # a profile's color space -> modes of the images that it can belong to
    "RGB": {"RGB", "RGBA", "RGBX", "P", "PA", "1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N"},
    "GRAY": {"1", "L", "LA", "I;16", "I;16B", "I;16L", "I;16N"},
    "CMYK": {"CMYK"},
}

warned_folders: set[Path] = set()


def profile_transform(image: Image.Image, path: Path) -> ToSRGB | None:
    """Returns what takes an image's colors to sRGB, or None where its pixels can stay as they are stored.

    A profile that cannot be used is ignored, with one warning for a folder.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode == "LAB":  # Pillow converts Lab by itself
        return None
    try:
        if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES:
            raise ValueError("no profile")
        return srgb_transform(profile, image.mode)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        warn_about_profile(path)
        return None


@functools.lru_cache(maxsize=8)
def srgb_transform(profile: bytes, mode: str) -> ToSRGB | None:
    """Returns what takes the colors of a profile to sRGB, or None where they are sRGB.

    Args:
        mode: of the images.

    Raises:
        PyCMSError, OSError: the profile is damaged.
        ValueError: it is one for other images.
    """
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = opened.profile.xcolor_space.strip()
    if mode not in CARRIERS.get(space, ()):
        raise ValueError(f"a profile of {space} in an image of {mode}")
    transform = ImageCms.buildTransform(
        opened,
        ImageCms.createProfile("sRGB"),
        MODES[space],
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )

    def to_srgb(image: Image.Image) -> Image.Image:
        return transform.apply(image.convert(MODES[space]))

    return None if space != "CMYK" and is_identity(to_srgb, MODES[space]) else to_srgb


def is_identity(to_srgb: ToSRGB, mode: str) -> bool:
    """Whether a transform changes no color by more than SAME, judged by a grid of them and all greys."""
    grey = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    colors = grey if mode == "L" else np.concatenate([grey, grid])
    probe = Image.fromarray(colors[None]).convert(mode)
    return np.abs(np.asarray(to_srgb(probe), int) - colors).max() <= SAME


def warn_about_profile(path: Path) -> None:
    """Warns of a color profile that is ignored; of the first one in a folder only."""
    if path.parent not in warned_folders:
        warned_folders.add(path.parent)
        warn(
            f"{path}: its color profile cannot be used, so its pixels are taken as they are stored. Others in this "
            "folder are not named."
        )
