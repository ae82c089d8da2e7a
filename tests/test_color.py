"""Embedded color profiles are converted to sRGB; without one, or with sRGB's, every pixel stays as it is stored."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from jaxbooth.data import color
from jaxbooth.data.images import load_image
from tests.icc import (
    ADOBE_RGB,
    DISPLAY_P3,
    PROPHOTO,
    SRGB,
    cmyk_profile,
    grey_profile,
    matrix_profile,
    rgb_profile,
    srgb_curve,
    srgb_of,
    table,
    to_xyz,
)
from tests.made_up_images import CASES, noise

PATCHES = np.array([[[200, 60, 40], [30, 60, 180]], [[224, 172, 140], [40, 160, 60]]], np.uint8)
SPACES = {"p3": (DISPLAY_P3, 2.2), "adobe": (ADOBE_RGB, 2.2), "prophoto": (PROPHOTO, 1.8)}
MUTED = np.array([[[160, 120, 100], [90, 100, 140], [128, 128, 128], [0, 0, 0], [255, 255, 255]]], np.uint8)


@pytest.fixture(autouse=True)
def no_warning_yet(monkeypatch):
    monkeypatch.setattr(color, "warned_folders", set())


def pixels(path) -> np.ndarray:
    return np.asarray(load_image(path).image, int)


@pytest.mark.parametrize("name", ["p3.jpg", "adobe.jpg"])
def test_photos_of_two_profiles_show_the_same_colors(name):
    found = pixels(CASES / "colour-profiles" / name)
    for corner, patch in {(20, 20): (0, 0), (75, 75): (0, 1), (75, 20): (1, 0), (20, 75): (1, 1)}.items():
        np.testing.assert_allclose(found[corner], PATCHES[patch], atol=2)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_a_profile_is_applied_as_it_is_defined(tmp_path, space, name):
    primaries, gamma = SPACES[space]
    lossless = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 100, "subsampling": 0}}.get(name, {})
    image = Image.fromarray(MUTED.repeat(16, 0).repeat(16, 1))
    image.save(tmp_path / name, icc_profile=rgb_profile(primaries, gamma), **lossless)
    expected = srgb_of(MUTED, to_xyz(*primaries), gamma)
    np.testing.assert_allclose(pixels(tmp_path / name)[8, 8::16], expected[0], atol=4 if name == "a.jpg" else 2)


def test_avif_is_converted_too(tmp_path):
    image = Image.new("RGB", (32, 32), (160, 120, 100))
    image.save(tmp_path / "a.avif", quality=100, subsampling="4:4:4", icc_profile=rgb_profile(ADOBE_RGB, 2.2))
    expected = srgb_of([160, 120, 100], to_xyz(*ADOBE_RGB), 2.2)
    np.testing.assert_allclose(pixels(tmp_path / "a.avif")[16, 16], expected, atol=4)


def test_transparent_colors_are_converted_before_they_lie_on_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (160, 120, 100, 255))
    image.putpixel((1, 0), (160, 120, 100, 0))
    image.save(tmp_path / "a.png", icc_profile=rgb_profile(ADOBE_RGB, 2.2))
    expected = srgb_of([160, 120, 100], to_xyz(*ADOBE_RGB), 2.2)
    np.testing.assert_allclose(pixels(tmp_path / "a.png")[0], [expected, [255, 255, 255]], atol=2)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", masked=True).mask, [[255, 0]])


def test_a_palette_is_converted(tmp_path):
    image = Image.new("P", (1, 1))
    image.putpalette([160, 120, 100])
    image.save(tmp_path / "a.png", icc_profile=rgb_profile(ADOBE_RGB, 2.2))
    expected = srgb_of([160, 120, 100], to_xyz(*ADOBE_RGB), 2.2)
    np.testing.assert_allclose(pixels(tmp_path / "a.png")[0, 0], expected, atol=2)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_of_another_gamma_is_converted(tmp_path, mode):
    grey = {"L": [[128]], "LA": [[[128, 255]]], "I;16": [[128 * 257]]}[mode]
    image = Image.fromarray(np.array(grey, np.uint16 if mode == "I;16" else np.uint8))
    image.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    np.testing.assert_allclose(pixels(tmp_path / "a.png")[0, 0], [188] * 3, atol=1)  # half the light


def test_cmyk_is_converted_by_its_profile(tmp_path):
    corners = {(0, 0, 0, 0): (100, 0, 0), (1, 0, 0, 0): (55, -37, -50), (0, 1, 0, 0): (48, 74, -3)}
    image = Image.new("CMYK", (32, 16))
    image.paste((255, 0, 0, 0), (16, 0, 32, 16))
    image.save(tmp_path / "a.jpg", quality=100, icc_profile=cmyk_profile(corners))
    found = pixels(tmp_path / "a.jpg")
    np.testing.assert_allclose(found[8, 4], [255, 255, 255], atol=3)
    np.testing.assert_allclose(found[8, 28], [0, 147, 217], atol=12)  # a press's cyan; Pillow alone has (0, 255, 255)


def test_lab_becomes_rgb(tmp_path):
    lab = [[[135, 0, 0], [138, 81, 70]]]  # a grey and red; a and b are signed
    Image.fromarray(np.array(lab, np.uint8), "LAB").save(tmp_path / "a.tif")
    np.testing.assert_allclose(pixels(tmp_path / "a.tif")[0], [[126, 126, 126], [255, 0, 0]], atol=6)


# What stays as it is


def srgb_profiles() -> dict[str, bytes]:
    """sRGB as the color library writes it, and as a table of its curve, as the profiles of 1998 have it."""
    tone = srgb_curve(np.arange(1024) / 1023)
    return {
        "formula": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "table": matrix_profile(SRGB, table(tone)),
    }


@pytest.mark.parametrize("profile", srgb_profiles().values(), ids=srgb_profiles())
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_an_srgb_profile_changes_no_bit(tmp_path, profile, mode):
    image = Image.fromarray(noise(64, 48)).convert(mode)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "profile.png", icc_profile=profile)
    np.testing.assert_array_equal(pixels(tmp_path / "profile.png"), pixels(tmp_path / "plain.png"))


@pytest.mark.parametrize("profile", [
    b"", b"I am no profile", rgb_profile(ADOBE_RGB, 2.2)[:200], grey_profile(1.0), cmyk_profile({}), bytes(4096),
])  # fmt: skip
def test_a_profile_that_cannot_be_used_leaves_the_pixels_as_stored(tmp_path, profile):
    stored = noise(16, 16)
    Image.fromarray(stored).save(tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), stored)


def test_one_warning_names_the_first_image_whose_profile_cannot_be_used(tmp_path, capsys):
    for name in ("a.png", "b.png"):
        Image.fromarray(noise(16, 16)).save(tmp_path / name, icc_profile=b"I am no profile")
    for name in ("a.png", "b.png", "a.png"):
        load_image(tmp_path / name)
    output = capsys.readouterr().out
    assert output.count("warning:") == 1
    assert "a.png: its color profile cannot be used" in output
