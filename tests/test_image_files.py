"""Which files are images, what is said of the others, and what can keep an image from opening: never its metadata."""

import contextlib
import importlib.util
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jaxbooth.data import decoding
from jaxbooth.data.containers import without_metadata
from jaxbooth.data.images import describe_unused, load_image, scan_folder
from jaxbooth.errors import UserError
from tests.icc import ADOBE_RGB, rgb_profile, srgb_of, to_xyz
from tests.made_up_images import CASES, noise, put, smooth

KEY = "--data.instance-dir"
LYING = 6  # EXIF orientation: stored lying, shown standing
EXIF_BODY = b"Exif\0\0"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_image(path)
    assert len(str(raised.value)) <= 500
    return str(raised.value)


def exif(orientation: int = LYING) -> Image.Exif:
    content = Image.Exif()
    content[0x0112] = orientation
    content[0x010F] = "a camera"
    return content


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(path: Path, *chunks: bytes) -> None:
    """Puts chunks behind a PNG's header."""
    content = path.read_bytes()
    path.write_bytes(content[:33] + b"".join(chunks) + content[33:])


def with_segment(path: Path, marker: int, data: bytes) -> None:
    """Puts a segment behind a JPEG's first two bytes."""
    content = path.read_bytes()
    path.write_bytes(content[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + content[2:])


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


def test_a_long_text_in_a_png_does_not_keep_it_from_opening():
    assert load_image(CASES / "png-text" / "b.png").size == (96, 96)


def test_exif_without_its_head_leaves_a_png_as_stored():
    path = CASES / "exif-without-head" / "p-not-tiff.png"
    assert load_image(path).size == Image.open(path).size


def texts(size: int) -> list[bytes]:
    data = zlib.compress(bytes(size))
    return [chunk(b"zTXt", b"a\0\0" + data), chunk(b"iTXt", b"a\0\1\0\0\0" + data), chunk(b"iCCP", b"a\0\0" + data)]


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


# HEIC, with its reader


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pip install 'jaxbooth[heic]'")
@pytest.mark.parametrize("name", ["a.heic", "A.HEIF", "a.hif"])
def test_heic_is_read_upright_in_srgb_whatever_its_exif_says(tmp_path, name):
    decoding.heif_is_readable()
    image = Image.new("RGB", (64, 32), (160, 120, 100))
    image.save(tmp_path / name, "HEIF", quality=100, exif=exif().tobytes(), icc_profile=rgb_profile(ADOBE_RGB, 2.2))
    (image,) = scan_folder(tmp_path, "x", KEY).images
    found = load_image(image.path)
    assert found.size == (32, 64)
    expected = srgb_of([160, 120, 100], to_xyz(*ADOBE_RGB), 2.2)
    np.testing.assert_allclose(found.image.getpixel((16, 32)), expected, atol=4)
    content = (tmp_path / name).read_bytes()
    place = content.rindex(b"MM\0*", 0, content.index(b"a camera"))
    (tmp_path / name).write_bytes(content[:place] + b"XXXX" + content[place + 4 :])
    np.testing.assert_allclose(load_image(image.path).image.getpixel((16, 16)), expected, atol=4)
