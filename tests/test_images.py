"""A folder of pictures with captions, the pixels made of it, and the sheets that show them."""

import importlib.util
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.images import Framing, Picture, framed, open_picture, scan
from jaxbooth.data.sheet import GAP, LINE, MIN_TILE, sheet
from jaxbooth.errors import UserError

KEY = "--data.instance-dir"
without_heif = pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is not None, reason="pillow-heif is here")


def put(path: Path, colour: str = "red", size: tuple[int, int] = (8, 8)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def caption_list(folder: Path, *entries: dict) -> None:
    (folder / "metadata.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(width: int, height: int) -> np.ndarray:
    """A gradient that survives lossy codecs."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows * 255 / height, columns * 255 / width, np.full_like(rows, 90)], -1).astype(np.uint8)


# Scanning


def test_pictures_come_in_name_order(tmp_path):
    for name in ("b.png", "a.jpg", "c.webp", "B.JPEG"):
        put(tmp_path / name)
    assert [picture.path.name for picture in scan(tmp_path, "x", KEY).pictures] == [
        "B.JPEG",
        "a.jpg",
        "b.png",
        "c.webp",
    ]


def test_without_captions_every_picture_takes_the_prompt(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    assert [picture.caption for picture in scan(tmp_path, "a sks dog", KEY).pictures] == ["a sks dog"] * 2


def test_a_caption_comes_from_the_list_then_the_text_file_then_the_prompt(tmp_path):
    for name in ("listed.png", "noted.png", "plain.png"):
        put(tmp_path / name)
    caption_list(tmp_path, {"file_name": "listed.png", "text": "from the list"})
    (tmp_path / "listed.txt").write_text("from the text file")
    (tmp_path / "noted.txt").write_text("from the text file\n")
    found = {picture.path.name: picture.caption for picture in scan(tmp_path, "the prompt", KEY).pictures}
    assert found == {"listed.png": "from the list", "noted.png": "from the text file", "plain.png": "the prompt"}


@pytest.mark.parametrize("key", ["text", "prompt", "caption"])
def test_the_caption_list_knows_three_names_for_the_caption(tmp_path, key):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", key: "a red square"})
    assert scan(tmp_path, "x", KEY).pictures[0].caption == "a red square"


def test_blank_lines_of_the_caption_list_mean_nothing(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text('\n{"file_name": "a.png", "text": "one"}\n\n')
    assert scan(tmp_path, "x", KEY).pictures[0].caption == "one"


def test_a_byte_order_mark_before_the_captions_is_no_part_of_them(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    (tmp_path / "metadata.jsonl").write_text('\ufeff{"file_name": "a.png", "text": "one"}', encoding="utf-8")
    (tmp_path / "b.txt").write_text("\ufefftwo", encoding="utf-8")
    assert [picture.caption for picture in scan(tmp_path, "x", KEY).pictures] == ["one", "two"]


def test_hidden_files_junk_and_folders_are_skipped_and_counted(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / ".hidden.png")
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7")
    (tmp_path / "Thumbs.db").write_bytes(b"junk")
    (tmp_path / "notes.txt").write_text("belongs to no picture")
    (tmp_path / "album.png").mkdir()
    folder = scan(tmp_path, "x", KEY)
    assert [picture.path.name for picture in folder.pictures] == ["a.png"]
    assert folder.skipped == 5


def test_captions_are_not_counted_as_skipped(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one")
    caption_list(tmp_path, {"file_name": "a.png", "text": "two"})
    assert scan(tmp_path, "x", KEY).skipped == 0


def test_a_caption_for_a_missing_picture_names_it_and_the_line(tmp_path):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", "text": "one"}, {"file_name": "gone.png", "text": "two"})
    with pytest.raises(UserError, match=r"line 2: gone\.png does not exist"):
        scan(tmp_path, "x", KEY)


@pytest.mark.parametrize(
    "line", ["not json", "[1]", "7", '{"text": "no file"}', '{"file_name": "a.png"}', '{"file_name": 5, "text": "x"}',
             '{"file_name": "a.png", "text": 5}', '{"file_name": "a.png", "text": null}']
)  # fmt: skip
def test_a_line_that_is_no_caption_is_named(tmp_path, line):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"metadata\.jsonl, line 1"):
        scan(tmp_path, "x", KEY)


def test_an_empty_text_file_is_an_empty_caption(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(UserError, match=r"a\.txt: the caption is empty"):
        scan(tmp_path, "x", KEY)


def test_an_empty_caption_in_the_list_is_not_replaced_by_the_prompt(tmp_path):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", "text": ""})
    with pytest.raises(UserError, match="caption is empty"):
        scan(tmp_path, "the prompt", KEY)


@pytest.mark.parametrize("name", ["metadata.jsonl", "a.txt"])
def test_captions_in_another_encoding_than_utf8_are_named(tmp_path, name):
    put(tmp_path / "a.png")
    (tmp_path / name).write_bytes('{"file_name": "a.png", "text": "caf\xe9"}'.encode("latin-1"))
    with pytest.raises(UserError, match=name):
        scan(tmp_path, "x", KEY)


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "readme.md").write_text("nothing here")
    with pytest.raises(UserError, match=rf"{KEY}: .* holds no picture \(1 other file"):
        scan(tmp_path, "x", KEY)


def test_a_missing_folder_is_named_with_its_flag(tmp_path):
    with pytest.raises(UserError, match=rf"{KEY}: .*gone is not a folder"):
        scan(tmp_path / "gone", "x", KEY)


@without_heif
@pytest.mark.parametrize("name", ["IMG_1.HEIC", "img_2.heif"])
def test_heic_without_its_reader_names_the_extra(tmp_path, name):
    put(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(UserError, match=rf"{name}.*pip install 'jaxbooth\[heic\]'"):
        scan(tmp_path, "x", KEY)


# Decoding


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
def test_lossless_pictures_keep_their_pixels(tmp_path, name):
    pixels = noise(9, 5)
    Image.fromarray(pixels).save(tmp_path / name)
    np.testing.assert_array_equal(open_picture(tmp_path / name), pixels)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.avif"])
def test_lossy_pictures_are_readable(tmp_path, name):
    pixels = smooth(32, 24)
    Image.fromarray(pixels).save(tmp_path / name, quality=95)
    found = np.asarray(open_picture(tmp_path / name), float)
    assert found.shape == (24, 32, 3)
    assert np.abs(found - pixels).mean() < 4


def test_exif_orientation_is_applied(tmp_path):
    # Orientation 6: the stored picture has to be turned by 90 degrees clockwise to stand upright.
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16], pixels[:, 16:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    upright = np.asarray(open_picture(tmp_path / "a.jpg"), int)
    assert upright.shape == (32, 16, 3)
    np.testing.assert_allclose(upright, np.rot90(pixels, -1), atol=3)


def test_transparency_lies_on_white(tmp_path):
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png"), [[[255, 255, 255], [200, 0, 0], [127, 127, 127]]])


def test_a_palette_picture_becomes_rgb(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png"), [[[10, 20, 30], [40, 50, 60]]])


def test_a_transparent_palette_entry_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png"), [[[255, 255, 255], [40, 50, 60]]])


def test_a_grayscale_picture_becomes_rgb(tmp_path):
    Image.fromarray(np.array([[0, 100, 255]], np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png"), [[[0] * 3, [100] * 3, [255] * 3]])


def test_grayscale_with_transparency_lies_on_white(tmp_path):
    Image.fromarray(np.array([[[50, 255], [50, 0]]], np.uint8), "LA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_picture(tmp_path / "a.png"), [[[50] * 3, [255] * 3]])


def test_sixteen_bit_grayscale_keeps_its_tones(tmp_path):
    tones = np.array([[0, 64 * 257, 128 * 257, 255 * 257]], np.uint16)
    Image.fromarray(tones).save(tmp_path / "a.png")
    found = np.asarray(open_picture(tmp_path / "a.png"), int)
    np.testing.assert_allclose(found[0], [[0] * 3, [64] * 3, [128] * 3, [255] * 3], atol=1)


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    image = open_picture(tmp_path / "a.jpg")
    assert image.mode == "RGB"
    np.testing.assert_allclose(image.getpixel((8, 8)), [255, 0, 0], atol=3)


def test_a_text_file_that_calls_itself_a_jpeg_is_named(tmp_path):
    (tmp_path / "fake.jpg").write_text("I am no picture")
    with pytest.raises(UserError, match=r"fake\.jpg cannot be decoded"):
        open_picture(tmp_path / "fake.jpg")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.avif", "a.bmp"])
def test_a_truncated_picture_is_named(tmp_path, name):
    Image.fromarray(noise(64, 64)).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"{name} cannot be decoded"):
        open_picture(tmp_path / name)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(UserError, match=r"a\.png cannot be decoded"):
        open_picture(tmp_path / "a.png")


def test_a_picture_too_large_to_decode_is_named(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b"")
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(UserError, match=r"huge\.png"):
        open_picture(tmp_path / "huge.png")


# Framing


def test_a_square_picture_of_the_right_size_is_kept_as_it_is():
    pixels = noise(16, 16)
    np.testing.assert_array_equal(Framing(16, 0, False, 0).apply(Image.fromarray(pixels), 0), pixels[None])


def test_the_center_of_a_wide_picture_is_kept():
    pixels = noise(30, 16)
    np.testing.assert_array_equal(Framing(16, 0, False, 0).apply(Image.fromarray(pixels), 0)[0], pixels[:, 7:23])


def test_the_center_of_a_tall_picture_is_kept():
    pixels = noise(16, 26)
    np.testing.assert_array_equal(Framing(16, 0, False, 0).apply(Image.fromarray(pixels), 0)[0], pixels[5:21])


def test_the_short_side_is_resized_to_the_resolution_and_the_long_side_in_proportion():
    image = Image.fromarray(noise(60, 32))
    expected = np.asarray(image.resize((30, 16), Image.Resampling.LANCZOS))[:, 7:23]
    np.testing.assert_array_equal(Framing(16, 0, False, 0).apply(image, 0)[0], expected)


def test_three_stripes_keep_the_middle_one():
    stripes = np.zeros((40, 120, 3), np.uint8)
    stripes[:, :40], stripes[:, 40:80], stripes[:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    kept = Framing(40, 0, False, 0).apply(Image.fromarray(stripes), 0)[0]
    np.testing.assert_array_equal(kept, np.broadcast_to(np.uint8([0, 255, 0]), (40, 40, 3)))


def test_a_picture_smaller_than_the_resolution_is_enlarged():
    kept = Framing(64, 0, False, 0).apply(Image.new("RGB", (5, 3), (10, 200, 30)), 0)
    np.testing.assert_array_equal(kept, np.broadcast_to(np.uint8([10, 200, 30]), (1, 64, 64, 3)))


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (17, 16), (333, 500)])
def test_every_shape_fills_the_square(size):
    assert Framing(16, 0, False, 0).apply(Image.new("RGB", size), 0).shape == (1, 16, 16, 3)


def test_random_crops_are_parts_of_the_picture():
    pixels = noise(40, 16)
    windows = [pixels[:, x : x + 16] for x in range(25)]
    crops = Framing(16, 8, False, 0).apply(Image.fromarray(pixels), 0)
    found = [[x for x, window in enumerate(windows) if np.array_equal(crop, window)] for crop in crops]
    assert all(len(places) == 1 for places in found)
    assert len({places[0] for places in found}) > 1


def test_random_crops_reach_both_ends():
    pixels = noise(18, 16)
    crops = Framing(16, 64, False, 0).apply(Image.fromarray(pixels), 0)
    assert {x for crop in crops for x in range(3) if np.array_equal(crop, pixels[:, x : x + 16])} == {0, 1, 2}


def test_random_crops_repeat_with_the_seed_and_the_place_and_differ_without():
    image = Image.fromarray(noise(200, 16))
    crops = Framing(16, 4, False, 3).apply(image, 5)
    np.testing.assert_array_equal(crops, Framing(16, 4, False, 3).apply(image, 5))
    assert not np.array_equal(crops, Framing(16, 4, False, 4).apply(image, 5))
    assert not np.array_equal(crops, Framing(16, 4, False, 3).apply(image, 6))


@pytest.mark.parametrize("crops", [0, 3])
def test_flips_are_mirror_images_and_leave_the_crops_as_they_were(crops):
    image = Image.fromarray(noise(40, 16))
    plain, both = Framing(16, crops, False, 0).apply(image, 0), Framing(16, crops, True, 0).apply(image, 0)
    np.testing.assert_array_equal(both[: len(plain)], plain)
    np.testing.assert_array_equal(both[len(plain) :], np.flip(plain, axis=2))


@pytest.mark.parametrize(("crops", "flip", "count"), [(0, False, 1), (0, True, 2), (4, False, 4), (3, True, 6)])
def test_variants_are_crops_times_mirrorings(crops, flip, count):
    framing = Framing(8, crops, flip, 0)
    assert framing.apply(Image.new("RGB", (12, 8)), 0).shape == (count, 8, 8, 3)


def test_framing_a_folder_crops_each_picture_by_its_place(tmp_path):
    pixels = noise(100, 8)
    pictures = []
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
        pictures.append(Picture(tmp_path / name, "x"))
    framing = Framing(8, 4, False, 0)
    for index, variants in enumerate(framed(pictures, framing)):
        np.testing.assert_array_equal(variants, framing.apply(Image.fromarray(pixels), index))
    assert index == 1


# Sheets


def test_a_sheet_has_room_for_its_rows_columns_and_labels():
    image = sheet([noise(128, 128)] * 5, ["label"] * 5, columns=3, lines=2)
    assert image.size == (3 * (128 + GAP) + GAP, 2 * (128 + 2 * LINE + GAP) + GAP)


def test_each_picture_appears_in_the_sheet_in_reading_order():
    pictures = [np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8) for seed in range(5)]
    shown = np.asarray(sheet(pictures, ["a caption"] * 5, columns=3, lines=1))
    for index, pixels in enumerate(pictures):
        top, left = GAP + index // 3 * (128 + LINE + GAP), GAP + index % 3 * (128 + GAP)
        np.testing.assert_array_equal(shown[top : top + 128, left : left + 128], pixels)


@pytest.mark.parametrize(("side", "scale"), [(64, 2), (50, 3), (200, 1)])
def test_small_pictures_are_enlarged_by_whole_pixels(side, scale):
    pixels = noise(side, side)
    shown = np.asarray(sheet([pixels], [""], columns=1, lines=0))[GAP:-GAP, GAP:-GAP]
    np.testing.assert_array_equal(shown, pixels.repeat(scale, 0).repeat(scale, 1))
    assert shown.shape[1] >= MIN_TILE


def test_the_label_is_written_under_the_picture():
    black = np.zeros((128, 128, 3), np.uint8)
    under = GAP + 128
    bare, written = (np.asarray(sheet([black], [label], columns=1, lines=1)) for label in ("", "a sks dog"))
    np.testing.assert_array_equal(bare[:under], written[:under])
    assert (bare[under:] == 255).all()
    assert written[under:].min() < 100


def test_a_picture_without_a_label_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        sheet([noise(8, 8)] * 2, ["one"], columns=2)
