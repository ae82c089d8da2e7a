"""A folder of images with captions: what is found, what it is called, and how each file is decoded."""

import importlib.util
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.images import load_image, scan_folder
from jaxbooth.errors import UserError
from tests.made_up_images import caption_list, noise, put, smooth

KEY = "--data.instance-dir"
without_heif = pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is not None, reason="pillow-heif is here")


# Scanning


def test_images_come_in_name_order(tmp_path):
    for name in ("b.png", "a.jpg", "c.webp", "B.JPEG"):
        put(tmp_path / name)
    assert [image.path.name for image in scan_folder(tmp_path, "x", KEY).images] == [
        "B.JPEG",
        "a.jpg",
        "b.png",
        "c.webp",
    ]


def test_without_captions_every_image_takes_the_prompt(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    assert [image.caption for image in scan_folder(tmp_path, "a sks dog", KEY).images] == ["a sks dog"] * 2


def test_a_caption_comes_from_the_list_then_the_text_file_then_the_prompt(tmp_path):
    for name in ("listed.png", "noted.png", "plain.png"):
        put(tmp_path / name)
    caption_list(tmp_path, {"file_name": "listed.png", "text": "from the list"})
    (tmp_path / "listed.txt").write_text("from the text file")
    (tmp_path / "noted.txt").write_text("from the text file\n")
    found = {image.path.name: image.caption for image in scan_folder(tmp_path, "the prompt", KEY).images}
    assert found == {"listed.png": "from the list", "noted.png": "from the text file", "plain.png": "the prompt"}


@pytest.mark.parametrize("key", ["text", "prompt", "caption"])
def test_the_caption_list_knows_three_names_for_the_caption(tmp_path, key):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", key: "a red square"})
    assert scan_folder(tmp_path, "x", KEY).images[0].caption == "a red square"


def test_blank_lines_of_the_caption_list_mean_nothing(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('\n{"file_name": "a.png", "text": "one"}\n\n')
    assert scan_folder(tmp_path, "x", KEY).images[0].caption == "one"


def test_a_byte_order_mark_before_the_captions_is_no_part_of_them(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    (tmp_path / "metadata.jsonl").write_text('\ufeff{"file_name": "a.png", "text": "one"}', encoding="utf-8")
    (tmp_path / "b.txt").write_text("\ufefftwo", encoding="utf-8")
    assert [image.caption for image in scan_folder(tmp_path, "x", KEY).images] == ["one", "two"]


def test_hidden_files_junk_and_folders_are_skipped_and_counted(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / ".hidden.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "Thumbs.db").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("belongs to no image")
    (tmp_path / "album.png").mkdir()
    folder = scan_folder(tmp_path, "x", KEY)
    assert [image.path.name for image in folder.images] == ["a.png"]
    assert folder.skipped == 5


def test_captions_are_not_counted_as_skipped(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one")
    caption_list(tmp_path, {"file_name": "a.png", "text": "two"})
    assert scan_folder(tmp_path, "x", KEY).skipped == 0


def test_a_caption_for_a_missing_image_names_it_and_the_line(tmp_path):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", "text": "one"}, {"file_name": "gone.png", "text": "two"})
    with pytest.raises(UserError, match=r"line 2: gone\.png does not exist"):
        scan_folder(tmp_path, "x", KEY)


@pytest.mark.parametrize(
    "line", ["not json", "[1]", "7", '{"text": "no file"}', '{"file_name": "a.png"}', '{"file_name": 5, "text": "x"}',
             '{"file_name": "a.png", "text": 5}', '{"file_name": "a.png", "text": null}']
)  # fmt: skip
def test_a_line_that_is_no_caption_is_named(tmp_path, line):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 1"):
        scan_folder(tmp_path, "x", KEY)


def test_an_empty_text_file_is_an_empty_caption(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"a\.txt: the caption is empty"):
        scan_folder(tmp_path, "x", KEY)


def test_an_empty_caption_in_the_list_is_not_replaced_by_the_prompt(tmp_path):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", "text": ""})
    with pytest.raises(UserError, match="caption is empty"):
        scan_folder(tmp_path, "the prompt", KEY)


@pytest.mark.parametrize("name", ["metadata.jsonl", "a.txt"])
def test_captions_in_another_encoding_than_utf8_are_named(tmp_path, name):
    put(tmp_path / "a.png")
    (tmp_path / name).write_bytes('{"file_name": "a.png", "text": "caf\xe9"}'.encode("latin-1"))
    with pytest.raises(UserError, match=name):
        scan_folder(tmp_path, "x", KEY)


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "readme.md").write_text("nothing here")
    with pytest.raises(UserError, match=rf"{KEY}: .* holds no image \(1 other file"):
        scan_folder(tmp_path, "x", KEY)


def test_a_missing_folder_is_named_with_its_flag(tmp_path):
    with pytest.raises(UserError, match=rf"{KEY}: .*gone is not a folder"):
        scan_folder(tmp_path / "gone", "x", KEY)


@without_heif
@pytest.mark.parametrize("name", ["IMG_1.HEIC", "img_2.heif"])
def test_heic_without_its_reader_names_the_extra(tmp_path, name):
    put(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=rf"{name}.*pip install 'jaxbooth\[heic\]'"):
        scan_folder(tmp_path, "x", KEY)


# Decoding


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
def test_lossless_images_keep_their_pixels(tmp_path, name):
    pixels = noise(9, 5)
    Image.fromarray(pixels).save(tmp_path / name)
    np.testing.assert_array_equal(load_image(tmp_path / name).image, pixels)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif"])
def test_lossy_images_are_readable(tmp_path, name):
    pixels = smooth(32, 24)
    Image.fromarray(pixels).save(tmp_path / name, quality=95)
    found = np.asarray(load_image(tmp_path / name).image, float)
    assert found.shape == (24, 32, 3)
    assert np.abs(found - pixels).mean() < 4


def test_exif_orientation_is_applied(tmp_path):
    # Orientation 6: the stored image has to be turned by 90 degrees clockwise to stand upright.
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    upright = np.asarray(load_image(tmp_path / "a.jpg").image, int)
    assert upright.shape == (32, 16, 3)
    np.testing.assert_allclose(upright, np.rot90(pixels, -1), atol=3)


def test_transparency_lies_on_white(tmp_path):
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = load_image(tmp_path / "a.png").image
    np.testing.assert_array_equal(found, [[[255, 255, 255], [200, 0, 0], [127, 127, 127]]])


def test_a_palette_image_becomes_rgb(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").image, [[[10, 20, 30], [40, 50, 60]]])


def test_a_transparent_palette_entry_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").image, [[[255, 255, 255], [40, 50, 60]]])


def test_a_grayscale_image_becomes_rgb(tmp_path):
    Image.fromarray(np.array([[0, 100, 255]], np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").image, [[[0] * 3, [100] * 3, [255] * 3]])


def test_grayscale_with_transparency_lies_on_white(tmp_path):
    Image.fromarray(np.array([[[50, 255], [50, 0]]], np.uint8), "LA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png").image, [[[50] * 3, [255] * 3]])


def test_sixteen_bit_grayscale_keeps_its_tones(tmp_path):
    tones = np.array([[0, 64 * 257, 128 * 257, 255 * 257]], np.uint16)
    Image.fromarray(tones).save(tmp_path / "a.png")
    found = np.asarray(load_image(tmp_path / "a.png").image, int)
    np.testing.assert_allclose(found[0], [[0] * 3, [64] * 3, [128] * 3, [255] * 3], atol=1)


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    image = load_image(tmp_path / "a.jpg").image
    assert image.mode == "RGB"
    np.testing.assert_allclose(image.getpixel((8, 8)), [255, 0, 0], atol=3)


def test_a_text_file_that_calls_itself_a_jpeg_is_named(tmp_path):
    (tmp_path / "fake.jpg").write_text("I am no image")
    with pytest.raises(UserError, match=r"fake\.jpg cannot be decoded"):
        load_image(tmp_path / "fake.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.avif", "a.bmp"])
def test_a_truncated_image_is_named(tmp_path, name):
    Image.fromarray(noise(64, 64)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{name} cannot be decoded"):
        load_image(tmp_path / name)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"a\.png cannot be decoded"):
        load_image(tmp_path / "a.png")


def test_an_image_too_large_to_decode_is_named(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(UserError, match=r"huge\.png"):
        load_image(tmp_path / "huge.png")
