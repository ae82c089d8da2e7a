"""Images beyond what memory should hold whole: halved as they are decoded, or refused with the limit."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data import decoding
from jaxbooth.data.crops import CropSpec
from jaxbooth.data.images import load_image
from jaxbooth.errors import UserError
from tests.made_up_images import put, smooth

LYING = 6  # EXIF orientation: stored lying, shown standing


@pytest.fixture
def small_limits(monkeypatch):
    """Limits a hundred-thousandth of the real ones."""
    monkeypatch.setattr(decoding, "WHOLE_PIXELS", 1300)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 2600)
    monkeypatch.setattr(decoding, "STRIP", 8)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "a.gif"])
def test_a_very_large_image_is_halved_and_keeps_its_size(tmp_path, small_limits, name):
    Image.fromarray(smooth(50, 39)).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    found = load_image(tmp_path / name)
    assert (found.image.size, found.size) == ((25, 20), (50, 39))
    expected = np.asarray(Image.open(tmp_path / name).convert("RGB").reduce(2), int)
    np.testing.assert_allclose(found.image, expected, atol=9)


def test_a_very_large_image_is_halved_upright_with_its_transparency_and_profile(tmp_path, small_limits):
    image = Image.fromarray(smooth(50, 38))
    image.putalpha(Image.fromarray(smooth(50, 38)[:, :, 0]))
    exif = Image.Exif()
    exif[0x0112] = LYING
    image.save(tmp_path / "a.png", exif=exif)
    found = load_image(tmp_path / "a.png", masked=True)
    assert (found.image.size, found.mask.size, found.size) == ((19, 25), (19, 25), (38, 50))
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB").reduce(2)
    np.testing.assert_array_equal(found.image, flat.transpose(Image.Transpose.ROTATE_270))


def test_the_mask_of_a_very_large_image_has_its_size(tmp_path, small_limits):
    put(tmp_path / "a.jpg", size=(50, 38))
    Image.new("L", (50, 38), 255).save(tmp_path / "a.mask.png")
    assert load_image(tmp_path / "a.jpg", masked=True).mask.size == (25, 19)
    Image.new("L", (25, 19), 255).save(tmp_path / "a.mask.png")
    with pytest.raises(UserError, match=r"a\.mask\.png is 25x19 pixels, but a\.jpg is 50x38 upright"):
        load_image(tmp_path / "a.jpg", masked=True)


def test_the_sizes_that_sdxl_is_told_are_those_of_the_file(tmp_path, small_limits):
    put(tmp_path / "a.jpg", size=(50, 38))
    found = CropSpec(16, 16).augment(load_image(tmp_path / "a.jpg"), 0)
    np.testing.assert_array_equal(found.time_ids, [[38, 50, 0, 2, 16, 16]])


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "a.gif", "a.bmp"])
def test_what_is_larger_than_the_limit_is_refused_with_it(tmp_path, small_limits, name):
    put(tmp_path / name, size=(60, 50))
    with pytest.raises(UserError, match=rf"{name} has more than 2,600 pixels; make it smaller"):
        load_image(tmp_path / name)


def test_the_limits_leave_room_for_200_megapixels_and_pillows_own_stays_as_it_was(tmp_path):
    assert decoding.MAX_PIXELS > 200_000_000
    before = Image.MAX_IMAGE_PIXELS
    load_image(put(tmp_path / "a.png"))
    assert before == Image.MAX_IMAGE_PIXELS


MEASURED = """
import sys
from pathlib import Path
from jaxbooth.data.images import load_image
found = load_image(Path(sys.argv[1]))
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(*found.size, *found.image.size, int(peak) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "megabytes"), [("a.jpg", 800), ("a.png", 1500)])
def test_a_photo_of_200_megapixels_opens_in_bounded_memory(tmp_path, monkeypatch, name, megabytes):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    grey = Image.linear_gradient("L").resize((16320, 12240))
    Image.merge("RGB", (grey, grey, grey)).save(tmp_path / name, **({"compress_level": 1} if name == "a.png" else {}))
    measured = subprocess.run(
        [sys.executable, "-c", MEASURED, tmp_path / name], capture_output=True, check=True, text=True
    )
    *sizes, peak = map(int, measured.stdout.split())
    assert sizes == [16320, 12240, 8160, 6120]
    assert peak < megabytes
