"""Damaged or unusual metadata does not keep an image from being read."""

import contextlib
import importlib.util
import struct

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxbooth.data import decoding
from jaxbooth.data.containers import without_metadata
from jaxbooth.data.images import load_image, scan_folder
from jaxbooth.errors import UserError
from tests.icc import ADOBE_RGB, rgb_profile, srgb_of, to_xyz
from tests.image_bytes import EXIF_BODY, chunk, exif, texts, with_chunks, with_segment
from tests.made_up_images import CASES, noise, smooth


def test_a_long_text_in_a_png_does_not_keep_it_from_opening():
    assert load_image(CASES / "png-text" / "b.png").size == (96, 96)


def test_exif_without_its_head_leaves_a_png_as_stored():
    path = CASES / "exif-without-head" / "p-not-tiff.png"
    assert load_image(path).size == Image.open(path).size


@pytest.mark.parametrize("damage", [
    *texts(3 * 2**20), chunk(b"iCCP", b"a\0\7xx"), chunk(b"iCCP", b""), chunk(b"iCCP", b"a\0\0nonsense"),
    chunk(b"zTXt", b"a\0\7xx"), chunk(b"eXIf", b"no tiff"), chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"), chunk(b"gAMA", b""), chunk(b"tIME", b"")[:-1] + b"?",
])  # fmt: skip
@pytest.mark.parametrize("place", ["before the pixels", "after them"])
def test_damaged_metadata_leaves_the_pixels_of_a_png(tmp_path, damage, place):
    pixels = noise(12, 9)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    if place == "after them":
        content = (tmp_path / "a.png").read_bytes()
        (tmp_path / "a.png").write_bytes(content[:-12] + damage + content[-12:])
    else:
        with_chunks(tmp_path / "a.png", damage)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").image, pixels)


def test_a_png_that_opens_without_its_text_stays_upright(tmp_path):
    text = PngInfo()
    text.add_text("a", "x" * (3 * 2**20), zip=True)
    pixels = noise(12, 9)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=text, exif=exif())
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").image, np.rot90(pixels, -1))


@pytest.mark.parametrize(("marker", "data"), [
    (0xE1, EXIF_BODY + b"no tiff"), (0xE1, EXIF_BODY + b"II*\0\xff\xff\xff\xff"), (0xE1, EXIF_BODY), (0xE0, b"JFIF"),
    (0xED, b"Photoshop 3.0\0" + b"8BIM" + b"\xff"), (0xEE, b"Adobe"), (0xE2, b"ICC_PROFILE\0"),
    (0xE2, b"ICC_PROFILE\0\1\2half"), (0xE2, b"MPF\0"), (0xE2, b"MPF\0II*\0\xff\xff\xff\xff"),
    (0xE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>9"), (0xFE, b""),
])  # fmt: skip
def test_damaged_metadata_leaves_the_pixels_of_a_jpeg(tmp_path, marker, data):
    Image.fromarray(smooth(24, 16)).save(tmp_path / "plain.jpg")
    (tmp_path / "damaged.jpg").write_bytes((tmp_path / "plain.jpg").read_bytes())
    with_segment(tmp_path / "damaged.jpg", marker, data)
    stored = load_image(tmp_path / "plain.jpg").image
    np.testing.assert_array_equal(load_image(tmp_path / "damaged.jpg").image, stored)


def test_a_jpeg_that_opens_without_a_damaged_part_stays_upright(tmp_path):
    Image.fromarray(smooth(24, 16)).save(tmp_path / "a.jpg", exif=exif())
    with_segment(tmp_path / "a.jpg", 0xED, b"Photoshop 3.0\0" + b"8BIM" + b"\xff")
    assert load_image(tmp_path / "a.jpg").size == (16, 24)


@pytest.mark.parametrize("name", ["a.webp", "a.avif", "a.png", "a.jpg"])
@pytest.mark.parametrize("head", [b"XXXX", b"II\0\0", b"MM\0*\xff\xff\xff\xff"])
def test_damaged_exif_leaves_the_pixels_of_every_format(tmp_path, name, head):
    Image.fromarray(smooth(24, 16)).save(tmp_path / name, exif=exif(1).tobytes())
    stored = load_image(tmp_path / name).image
    content = (tmp_path / name).read_bytes()
    place = content.rindex(b"MM\0*", 0, content.index(b"a camera"))
    (tmp_path / name).write_bytes(content[:place] + head + content[place + len(head) :])
    np.testing.assert_array_equal(load_image(tmp_path / name).image, stored)


def test_damaged_tags_leave_the_pixels_of_a_tiff(tmp_path):
    pixels = noise(12, 9)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={282: 72.0, 283: 72.0, 296: 2, 700: b"x" * 40})
    content = (tmp_path / "a.tif").read_bytes()
    for tag, kind in ((282, 5), (700, 1)):
        changed = content.replace(struct.pack("<HH", tag, kind), struct.pack("<HH", tag, 2))
        assert changed != content
        (tmp_path / "a.tif").write_bytes(changed)
        np.testing.assert_array_equal(load_image(tmp_path / "a.tif").image, pixels)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.avif", "a.webp"])
def test_any_damage_ends_in_pixels_or_in_one_sentence(tmp_path, name):
    Image.fromarray(smooth(24, 16)).save(tmp_path / name, exif=exif().tobytes())
    content, random = (tmp_path / name).read_bytes(), np.random.default_rng(3)
    for _ in range(60):
        damaged = bytearray(content)
        for place in random.integers(0, min(len(content), 400), random.integers(1, 6)):
            damaged[place] = random.integers(256)
        (tmp_path / name).write_bytes(damaged)
        with contextlib.suppress(UserError):
            assert load_image(tmp_path / name).image.mode == "RGB"


@pytest.mark.parametrize(
    "content", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0\xff\xff\xff\xff", b"    ftyp", b""]
)
def test_what_is_cut_short_has_nothing_to_be_left_without(content):
    left = without_metadata(content)
    assert left is None or len(left) <= len(content)


def test_a_jpeg_with_a_second_image_for_other_screens_shows_the_first(tmp_path):
    images = [Image.fromarray(smooth(64, 48)), Image.new("RGB", (64, 48), "blue")]
    images[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=images[1:], quality=95)
    np.testing.assert_allclose(np.asarray(load_image(tmp_path / "a.jpg").image, int), smooth(64, 48), atol=12)


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pip install 'jaxbooth[heic]'")
@pytest.mark.parametrize("name", ["a.heic", "A.HEIF", "a.hif"])
def test_heic_is_read_upright_in_srgb_whatever_its_exif_says(tmp_path, name):
    decoding.heif_is_readable()
    image = Image.new("RGB", (64, 32), (160, 120, 100))
    image.save(tmp_path / name, "HEIF", quality=100, exif=exif().tobytes(), icc_profile=rgb_profile(ADOBE_RGB, 2.2))
    (image,) = scan_folder(tmp_path, "x", "--data.instance-dir").images
    found = load_image(image.path)
    assert found.size == (32, 64)
    expected = srgb_of([160, 120, 100], to_xyz(*ADOBE_RGB), 2.2)
    np.testing.assert_allclose(found.image.getpixel((16, 32)), expected, atol=4)
    content = (tmp_path / name).read_bytes()
    place = content.rindex(b"MM\0*", 0, content.index(b"a camera"))
    (tmp_path / name).write_bytes(content[:place] + b"XXXX" + content[place + 4 :])
    np.testing.assert_allclose(load_image(image.path).image.getpixel((16, 16)), expected, atol=4)
