"""Masks: which file is one, what it says about its image, and how it follows the image through the crops."""

import os

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.crops import CropSpec, load_augmentations
from jaxbooth.data.images import ImageFile, load_image, scan_folder
from jaxbooth.errors import UserError
from tests.icc import grey_profile
from tests.made_up_images import noise, opened, put

KEY = "--data.instance-dir"


def grey(path, values, mode="L"):
    Image.fromarray(np.array(values, np.uint8)).convert(mode).save(path)


# Scanning


@pytest.mark.parametrize("name", ["a.mask.png", "a.MASK.png", "a.mask.PNG"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_mask_is_neither_an_image_nor_junk(tmp_path, name, masked):
    put(tmp_path / "a.jpg")
    put(tmp_path / name, "white")
    folder = scan_folder(tmp_path, "x", KEY, masked)
    assert ([image.path.name for image in folder.images], folder.skipped) == (["a.jpg"], 0)


def test_other_formats_and_names_are_images_and_no_masks(tmp_path):
    for name in ("a.jpg", "a.mask.jpg", "amask.png", "mask.png"):
        put(tmp_path / name)
    assert len(scan_folder(tmp_path, "x", KEY, masked=True).images) == 4


def test_a_mask_without_its_image_is_an_error_only_if_masks_are_asked_for(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.mask.png", "white")
    folder = scan_folder(tmp_path, "x", KEY)
    assert ([image.path.name for image in folder.images], folder.skipped) == (["a.png"], 1)
    with pytest.raises(UserError, match=r"b\.mask\.png masks no image: .* holds no b\.\*"):
        scan_folder(tmp_path, "x", KEY, masked=True)


def test_a_hidden_twin_of_a_mask_is_junk(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "._a.mask.png")
    assert scan_folder(tmp_path, "x", KEY, masked=True).skipped == 1


def test_a_folder_of_masks_holds_no_image(tmp_path):
    put(tmp_path / "a.mask.png", "white")
    with pytest.raises(UserError, match="holds no image"):
        scan_folder(tmp_path, "x", KEY)


# Decoding


@pytest.mark.parametrize("name", ["a.mask.png", "a.Mask.PNG"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_the_file_beside_the_image_is_its_mask(tmp_path, name, mode):
    put(tmp_path / "a.jpg", size=(3, 1))
    put(tmp_path / "b.jpg", size=(3, 1))
    grey(tmp_path / name, [[0, 100, 255]], mode)
    mask = load_image(tmp_path / "a.jpg", masked=True).mask
    assert mask.mode == "L"
    np.testing.assert_array_equal(mask, [[0, 100, 255]])
    assert load_image(tmp_path / "b.jpg", masked=True).mask is None


def test_the_alpha_channel_is_the_mask_of_an_image_without_a_file(tmp_path):
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = load_image(tmp_path / "a.png", masked=True)
    np.testing.assert_array_equal(found.mask, [[0, 255, 128]])
    np.testing.assert_array_equal(found.image, [[[255, 255, 255], [200, 0, 0], [127, 127, 127]]])


def test_a_transparent_palette_entry_is_ignored(tmp_path):
    Image.fromarray(np.array([[0, 1]], np.uint8), "P").save(tmp_path / "a.png", transparency=0)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", masked=True).mask, [[0, 255]])


def test_the_file_wins_over_the_alpha_channel(tmp_path):
    Image.new("RGBA", (2, 1), (9, 9, 9, 0)).save(tmp_path / "a.png")
    grey(tmp_path / "a.mask.png", [[255, 7]])
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", masked=True).mask, [[255, 7]])


def test_what_a_mask_leaves_transparent_is_ignored(tmp_path):
    put(tmp_path / "a.jpg", size=(2, 1))
    Image.fromarray(np.array([[[255, 255], [255, 0]]], np.uint8), "LA").save(tmp_path / "a.mask.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg", masked=True).mask, [[255, 0]])


def test_the_values_of_a_mask_are_no_colors(tmp_path):
    put(tmp_path / "a.jpg", size=(3, 1))
    mask = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    mask.save(tmp_path / "a.mask.png", icc_profile=grey_profile(1.0))
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg", masked=True).mask, [[0, 100, 255]])


def test_a_mask_is_found_in_other_capitals(tmp_path):
    for name in ("a.png", "B.png"):
        put(tmp_path / name, size=(2, 1))
    grey(tmp_path / "A.mask.png", [[255, 7]])
    grey(tmp_path / "b.MASK.png", [[255, 9]])
    assert [len(scan_folder(tmp_path, "x", KEY, masked=True).images)] == [2]
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", masked=True).mask, [[255, 7]])
    np.testing.assert_array_equal(load_image(tmp_path / "B.png", masked=True).mask, [[255, 9]])


def test_a_pipe_in_place_of_a_mask_is_not_waited_for(tmp_path):
    put(tmp_path / "a.png")
    os.mkfifo(tmp_path / "a.mask.png")
    assert [name for name, _ in scan_folder(tmp_path, "x", KEY, masked=True).unused] == ["a.mask.png"]
    assert load_image(tmp_path / "a.png", masked=True).mask is None


def test_masks_are_left_alone_unless_asked_for(tmp_path):
    Image.new("RGBA", (2, 1), (9, 9, 9, 0)).save(tmp_path / "a.png")
    (tmp_path / "a.mask.png").write_text("no image")
    assert load_image(tmp_path / "a.png").mask is None


def test_a_mask_lies_on_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown standing
    Image.fromarray(noise(4, 2)).save(tmp_path / "a.jpg", exif=exif)
    standing = np.arange(8, dtype=np.uint8).reshape(4, 2)
    grey(tmp_path / "a.mask.png", standing)
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg", masked=True).mask, standing)
    grey(tmp_path / "a.mask.png", standing.T)
    with pytest.raises(UserError, match=r"a\.mask\.png is 4x2 pixels, but a\.jpg is 2x4 upright"):
        load_image(tmp_path / "a.jpg", masked=True)


def test_an_alpha_channel_turns_with_its_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGBA", (3, 1), "red")
    image.putalpha(Image.fromarray(np.array([[10, 20, 30]], np.uint8)))
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png", masked=True).mask, [[10], [20], [30]])


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_an_all_black_mask_is_refused(tmp_path, name):
    put(tmp_path / name)
    put(tmp_path / "a.mask.png", "black")
    with pytest.raises(UserError, match=rf"a\.mask\.png: its mask is all black, so nothing of {name}"):
        load_image(tmp_path / name, masked=True)


def test_a_wholly_transparent_image_is_refused(tmp_path):
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png: its mask is all black"):
        load_image(tmp_path / "a.png", masked=True)


def test_a_mask_that_is_no_image_is_named(tmp_path):
    put(tmp_path / "a.jpg")
    (tmp_path / "a.mask.png").write_text("no image")
    with pytest.raises(UserError, match=r"a\.mask\.png cannot be decoded"):
        load_image(tmp_path / "a.jpg", masked=True)


# Crops


def test_without_a_mask_everything_is_learned():
    masks = CropSpec(8, 12, 3, True, 0).augment(opened(noise(20, 16)), 0).masks
    assert masks.dtype == np.float32
    np.testing.assert_array_equal(masks, np.ones((6, 8, 12)))


@pytest.mark.parametrize("crops", [0, 6])
def test_a_mask_is_cropped_and_mirrored_with_its_image(crops):
    pixels = noise(40, 16)
    found = CropSpec(16, 24, crops, True, 3).augment(opened(pixels, pixels[..., 1]), 5)
    np.testing.assert_array_equal(found.masks, found.pixels[..., 1] / np.float32(255))


def test_a_shrunk_mask_is_averaged_over_the_area():
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :5] = 255
    found = CropSpec(2, 2).augment(opened(noise(8, 8), mask), 0).masks
    np.testing.assert_allclose(found, [[[1, 0.25]] * 2], atol=1 / 255)


def test_an_enlarged_mask_keeps_its_edges():
    found = CropSpec(8, 8).augment(opened(noise(2, 2), np.array([[255, 0], [51, 255]], np.uint8)), 0).masks
    np.testing.assert_allclose(found[0], np.kron([[1, 0], [0.2, 1]], np.ones((4, 4))), rtol=1e-6)


def test_crops_a_folder_reads_masks_only_if_asked(tmp_path):
    put(tmp_path / "a.png", size=(4, 2))
    grey(tmp_path / "a.mask.png", [[0, 255, 0, 255]] * 2)
    images, crops = [ImageFile(tmp_path / "a.png", "x")], CropSpec(2, 2)
    (plain,), (masked,) = load_augmentations(images, crops), load_augmentations(images, crops, masked=True)
    np.testing.assert_array_equal(plain.masks, np.ones((1, 2, 2)))
    np.testing.assert_array_equal(masked.masks, [[[1, 0]] * 2])
