"""Which files are images, what is said of the others, and what can keep an image from opening: never its metadata."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data import decoding
from jaxbooth.data.images import describe_unused, load_image, scan_folder
from jaxbooth.errors import UserError
from tests.image_bytes import EXIF_BODY, chunk, exif, refusal, texts, with_chunks
from tests.made_up_images import CASES, noise, put

KEY = "--data.instance-dir"


# Which files


def test_every_ending_of_a_known_format_is_used():
    folder = scan_folder(CASES / "other-extensions", "x", KEY)
    assert [image.path.name for image in folder.images] == ["b.jfif", "c.tif", "d.gif", "e.jpe", "g.apng"]
    for image in folder.images:
        assert load_image(image.path).size == (96, 96)


@pytest.mark.parametrize("name", ["a.gif", "a.apng", "a.webp", "a.tiff", "a.avif"])
def test_of_several_images_in_a_file_the_first_is_used(tmp_path, name):
    colors = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    colors[0].save(tmp_path / name, save_all=True, append_images=colors[1:])
    np.testing.assert_allclose(load_image(tmp_path / name).image.getpixel((8, 8)), (255, 0, 0), atol=4)


def test_what_is_not_used_is_told_with_the_reason(tmp_path):
    put(tmp_path / "a.png")
    for name in ("b.psd", "clip.MP4", "README", "notes.txt", "c.mask.png", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.png")
    folder = scan_folder(tmp_path, "x", KEY)
    assert dict(folder.unused) == {
        "b.psd": ".psd is not read",
        "clip.MP4": ".mp4 is not read",
        "README": "no ending",
        "notes.txt": "no image of this name",
        "c.mask.png": "no image of this name",
        "gone.png": "link to nothing",
        "pipe.png": "neither a file nor a folder",
        ".DS_Store": "",
        "Thumbs.db": "",
    }


def test_images_in_subfolders_are_not_read_and_told_first(tmp_path):
    put(tmp_path / "a.png")
    for name in ("1.psd", "2.psd", "3.psd", "4.psd", "5.psd"):
        (tmp_path / name).touch()
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    put(tmp_path / "sub" / "deep" / "b.png")
    put(tmp_path / "sub" / "c.JPG")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    folder = scan_folder(tmp_path, "x", KEY)
    assert [image.path.name for image in folder.images] == ["a.png"]
    told = describe_unused(folder.unused)
    assert told.startswith("sub (subfolder with 2 image(s)), 1.psd (.psd is not read), ")
    assert told.endswith(" and 1 more")


def test_a_folder_of_folders_says_to_name_one(tmp_path):
    (tmp_path / "10_sks dog").mkdir()
    put(tmp_path / "10_sks dog" / "a.png")
    with pytest.raises(UserError, match=r"holds no image .*10_sks dog \(subfolder with 1 image.*name the one"):
        scan_folder(tmp_path, "x", KEY)


def test_a_link_to_an_image_elsewhere_is_that_image(tmp_path):
    (tmp_path / "photos").mkdir()
    put(tmp_path / "elsewhere.png", "blue")
    (tmp_path / "photos" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    (image,) = scan_folder(tmp_path / "photos", "x", KEY).images
    assert load_image(image.path).image.getpixel((0, 0)) == (0, 0, 255)


def test_long_and_strange_names_make_no_long_sentence(tmp_path):
    for index in range(9):
        (tmp_path / (f"{index}\n" + "ö" * 100 + ".psd")).touch()
    with pytest.raises(UserError, match=r"9 other file\(s\): .* and 4 more") as raised:
        scan_folder(tmp_path, "x", KEY)
    assert len(str(raised.value).replace(str(tmp_path), "")) <= 500
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n", b"%PDF-1.4\n", b"8BPS\0\1" + bytes(40),
    b"P6 1 1 255\nabc", b"",
])  # fmt: skip
def test_other_formats_are_not_opened_whatever_their_name_says(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert "a.png cannot be decoded (it is no image of a known format)" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_at_once(tmp_path, make):
    make(tmp_path / "a.png")
    assert "a.png is not a file" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["F", "I"])
def test_samples_of_32_bits_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "a.tif")
    assert "its samples have 32 bits" in refusal(tmp_path / "a.tif")


def test_a_sixteen_bit_tiff_that_counts_from_white_is_no_negative(tmp_path):
    Image.fromarray(np.array([[0, 100 * 257, 255 * 257]], np.uint16)).save(tmp_path / "a.tif", tiffinfo={262: 0})
    content = (tmp_path / "a.tif").read_bytes()
    assert content[:2] == b"II"
    content = content.replace(struct.pack("<HHII", 262, 3, 1, 1), struct.pack("<HHII", 262, 3, 1, 0))
    (tmp_path / "a.tif").write_bytes(content)
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif").image, [[[255] * 3, [155] * 3, [0] * 3]])


# The header


def stored_images(folder: Path) -> list[Path]:
    """Files whose header tells the size or the alpha channel in its own way."""
    image = Image.fromarray(noise(12, 9))
    for orientation in range(1, 9):
        for ending in ("jpg", "png", "webp", "avif", "tif"):
            image.save(folder / f"turned-{orientation}.{ending}", exif=exif(orientation))
    image.convert("P").save(folder / "palette.png", transparency=0)
    image.convert("P").save(folder / "palette.gif", transparency=0)
    image.convert("L").save(folder / "grey.png", transparency=7)
    image.convert("LA").save(folder / "grey-alpha.png")
    image.convert("RGBA").save(folder / "alpha.webp")
    image.convert("RGBA").save(folder / "alpha.tif")
    Image.fromarray(np.full((9, 12), 40_000, np.uint16)).save(folder / "deep.png", transparency=7)
    image.save(folder / "late-exif.png")
    content = (folder / "late-exif.png").read_bytes()
    late = chunk(b"eXIf", exif().tobytes().removeprefix(EXIF_BODY))
    (folder / "late-exif.png").write_bytes(content[:-12] + late + content[-12:])
    with_chunks(folder / "turned-1.png", texts(3 * 2**20)[0])  # which opens without its text alone
    return sorted(folder.iterdir())


def test_a_header_tells_what_decoding_tells(tmp_path):
    paths = [*stored_images(tmp_path), *(path for path in CASES.glob("*/*") if path.suffix in (".png", ".jpg"))]
    for path in paths:
        decoded = decoding.decode(path, "white")
        assert decoding.read_header(path) == (decoded.size, decoded.alpha is not None), path.name
    assert decoding.read_header(tmp_path / "late-exif.png").size == (9, 12)


def test_a_header_is_read_without_the_pixels(tmp_path):
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        Image.fromarray(noise(640, 480)).save(tmp_path / name, exif=exif())
        content = (tmp_path / name).read_bytes()
        damaged = bytearray(content)
        damaged[1000:20_000] = bytes(19_000)
        (tmp_path / name).write_bytes(damaged)
        assert decoding.read_header(tmp_path / name).size == (480, 640)


# Metadata


# HEIC, with its reader
