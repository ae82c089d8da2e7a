"""The augmentations that are made of an image with their sizes and masks, and the sheets that show them."""

import resource

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.crops import CropSpec, load_augmentations
from jaxbooth.data.image_grid import GAP, LINE, MIN_TILE, image_grid, shrink
from jaxbooth.data.images import ImageFile, LoadedImage, scan_folder
from tests.made_up_images import noise, opened

CENTER = CropSpec(16, 16)

# Crops


def test_a_square_image_of_the_right_size_is_kept_as_it_is():
    pixels = noise(16, 16)
    np.testing.assert_array_equal(CENTER.augment(opened(pixels), 0).pixels, pixels[None])


def test_the_center_of_a_wide_image_is_kept():
    pixels = noise(30, 16)
    np.testing.assert_array_equal(CENTER.augment(opened(pixels), 0).pixels[0], pixels[:, 7:23])


def test_the_center_of_a_tall_image_is_kept():
    pixels = noise(16, 26)
    np.testing.assert_array_equal(CENTER.augment(opened(pixels), 0).pixels[0], pixels[5:21])


def test_the_short_side_is_resized_to_the_resolution_and_the_long_side_in_proportion():
    image = opened(noise(60, 32))
    expected = np.asarray(image.image.resize((30, 16), Image.Resampling.LANCZOS))[:, 7:23]
    np.testing.assert_array_equal(CENTER.augment(image, 0).pixels[0], expected)


def test_three_stripes_keep_the_middle_one():
    stripes = np.zeros((40, 120, 3), np.uint8)
    stripes[:, :40], stripes[:, 40:80], stripes[:, 80:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    kept = CropSpec(40, 40).augment(opened(stripes), 0).pixels[0]
    np.testing.assert_array_equal(kept, np.broadcast_to(np.uint8([0, 255, 0]), (40, 40, 3)))


def test_an_image_smaller_than_the_resolution_is_enlarged():
    kept = CropSpec(64, 64).augment(LoadedImage(Image.new("RGB", (5, 3), (10, 200, 30)), None), 0).pixels
    np.testing.assert_array_equal(kept, np.broadcast_to(np.uint8([10, 200, 30]), (1, 64, 64, 3)))


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (17, 16), (333, 500)])
def test_every_shape_fills_the_square(size):
    assert CENTER.augment(LoadedImage(Image.new("RGB", size), None), 0).pixels.shape == (1, 16, 16, 3)


def test_random_crops_are_parts_of_the_image():
    pixels = noise(40, 16)
    windows = [pixels[:, x : x + 16] for x in range(25)]
    crops = CropSpec(16, 16, 8, False, 0).augment(opened(pixels), 0).pixels
    found = [[x for x, window in enumerate(windows) if np.array_equal(crop, window)] for crop in crops]
    assert all(len(places) == 1 for places in found)
    assert len({places[0] for places in found}) > 1


def test_random_crops_reach_both_ends():
    pixels = noise(18, 16)
    crops = CropSpec(16, 16, 64, False, 0).augment(opened(pixels), 0).pixels
    assert {x for crop in crops for x in range(3) if np.array_equal(crop, pixels[:, x : x + 16])} == {0, 1, 2}


def test_random_crops_repeat_with_the_seed_and_the_place_and_differ_without():
    image = opened(noise(200, 16))
    crops = CropSpec(16, 16, 4, False, 3).augment(image, 5).pixels
    np.testing.assert_array_equal(crops, CropSpec(16, 16, 4, False, 3).augment(image, 5).pixels)
    assert not np.array_equal(crops, CropSpec(16, 16, 4, False, 4).augment(image, 5).pixels)
    assert not np.array_equal(crops, CropSpec(16, 16, 4, False, 3).augment(image, 6).pixels)


@pytest.mark.parametrize("crops", [0, 3])
def test_flips_are_mirror_images_and_leave_the_crops_as_they_were(crops):
    image = opened(noise(40, 16))
    plain = CropSpec(16, 16, crops, False, 0).augment(image, 0).pixels
    both = CropSpec(16, 16, crops, True, 0).augment(image, 0).pixels
    np.testing.assert_array_equal(both[: len(plain)], plain)
    np.testing.assert_array_equal(both[len(plain) :], np.flip(plain, axis=2))


@pytest.mark.parametrize(("crops", "flip", "count"), [(0, False, 1), (0, True, 2), (4, False, 4), (3, True, 6)])
def test_variants_are_crops_times_mirrorings(crops, flip, count):
    crops = CropSpec(8, 8, crops, flip, 0)
    assert crops.augment(LoadedImage(Image.new("RGB", (12, 8)), None), 0).pixels.shape == (count, 8, 8, 3)


def test_each_image_of_a_folder_is_cropped_by_its_index(tmp_path):
    pixels = noise(100, 8)
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    images = scan_folder(tmp_path, "x", "folder").images
    crops = CropSpec(8, 8, 4, False, 0)
    for chosen in ([0, 1, 2], [2, 1]):
        for place, augmentations in zip(
            chosen, load_augmentations([images[index] for index in chosen], crops), strict=True
        ):
            np.testing.assert_array_equal(augmentations.pixels, crops.augment(opened(pixels), place).pixels)


# Rectangles


def test_a_rectangle_keeps_an_image_of_its_own_shape_whole():
    pixels = noise(24, 16)
    np.testing.assert_array_equal(CropSpec(16, 24).augment(opened(pixels), 0).pixels[0], pixels)


@pytest.mark.parametrize(("height", "width", "cover", "box"), [
    (16, 24, (24, 24), np.s_[4:20, :]),
    (24, 16, (24, 24), np.s_[:, 4:20]),
])  # fmt: skip
def test_a_square_image_is_resized_to_cover_the_rectangle(height, width, cover, box):
    image = opened(noise(60, 60))
    expected = np.asarray(image.image.resize(cover, Image.Resampling.LANCZOS))[box]
    np.testing.assert_array_equal(CropSpec(height, width, 0, False, 0).augment(image, 0).pixels[0], expected)


def test_a_wide_image_covers_a_wide_rectangle_by_the_side_that_needs_it():
    # 70 x 30 covers 24 wide by 16 high when its height is 16, and 60 x 48 when its width is 24.
    for size, cover, box in [((70, 30), (37, 16), np.s_[:, 6:30]), ((60, 48), (24, 19), np.s_[1:17, :])]:
        image = opened(noise(*size))
        expected = np.asarray(image.image.resize(cover, Image.Resampling.LANCZOS))[box]
        np.testing.assert_array_equal(CropSpec(16, 24).augment(image, 0).pixels[0], expected)


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (17, 16), (333, 500)])
def test_every_shape_fills_the_rectangle(size):
    found = CropSpec(16, 40, 2, True, 0).augment(LoadedImage(Image.new("RGB", size), None), 0)
    assert (found.pixels.shape, found.time_ids.shape, found.masks.shape) == ((4, 16, 40, 3), (4, 6), (4, 16, 40))


# Strips


def test_a_strip_of_60000_pixels_is_cut_before_it_is_enlarged():
    image = LoadedImage(Image.new("RGB", (60000, 1), (10, 200, 30)), Image.new("L", (60000, 1), 255))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = CropSpec(512, 512, 2, True, 0).augment(image, 0)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes, where all of it has 6e6
    np.testing.assert_array_equal(found.pixels, np.broadcast_to(np.uint8([10, 200, 30]), (4, 512, 512, 3)))
    assert found.masks.min() == 1


@pytest.mark.parametrize("size", [(600, 5), (5, 600), (64, 48), (31, 200)])
@pytest.mark.parametrize("crops", [0, 4])
def test_cutting_before_resizing_shows_what_resizing_before_cutting_does(monkeypatch, size, crops):
    pixels = noise(*size) // 4 + 96  # far from black and white, where the order of the two passes shows
    image = opened(pixels, pixels[:, :, 0])
    whole = CropSpec(24, 32, crops, True, 1).augment(image, 0)
    monkeypatch.setattr("jaxbooth.data.crops.MAX_COVER", 0)
    cut = CropSpec(24, 32, crops, True, 1).augment(image, 0)
    np.testing.assert_allclose(cut.pixels.astype(int), whole.pixels, atol=2)
    assert np.abs(cut.masks - whole.masks).mean() < 0.01  # a pixel on the edge between two may count to either
    np.testing.assert_array_equal(cut.time_ids, whole.time_ids)


# Sizes, in the order of SDXL's time_ids: original height, width; crop top, left; target height, width


def test_the_center_crop_tells_its_sizes():
    found = CropSpec(16, 16).augment(opened(noise(30, 16)), 0)
    np.testing.assert_array_equal(found.time_ids, np.float32([[16, 30, 0, 7, 16, 16]]))
    assert found.time_ids.dtype == np.float32


def test_original_sizes_are_those_before_resizing_and_corners_those_after():
    found = CropSpec(16, 24).augment(opened(noise(60, 48)), 0)
    np.testing.assert_array_equal(found.time_ids, [[48, 60, 1, 0, 16, 24]])


def test_original_sizes_are_those_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown standing
    Image.fromarray(noise(32, 16)).save(tmp_path / "a.jpg", exif=exif)
    (augmentations,) = load_augmentations([ImageFile(tmp_path / "a.jpg", "x")], CENTER)
    np.testing.assert_array_equal(augmentations.time_ids, [[32, 16, 8, 0, 16, 16]])


def test_a_crop_is_found_at_its_corner_of_the_image_or_of_the_mirrored_one():
    pixels = noise(41, 33)
    found = CropSpec(33, 24, 5, True, 0).augment(opened(pixels), 0)
    lefts = found.time_ids[:, 3].astype(int)
    assert len(set(lefts[:5])) > 1
    for index, (crop, left) in enumerate(zip(found.pixels, lefts, strict=True)):
        shown = pixels if index < 5 else pixels[:, ::-1]
        np.testing.assert_array_equal(crop, shown[:, left : left + 24])
    np.testing.assert_array_equal(found.time_ids[:, [0, 1, 2, 4, 5]], [[33, 41, 0, 33, 24]] * 10)


def test_an_odd_rest_leaves_the_mirrored_center_crop_one_further_right():
    found = CropSpec(16, 16, 0, True, 0).augment(opened(noise(19, 16)), 0)
    np.testing.assert_array_equal(found.time_ids[:, 3], [1, 2])


# Sheets


def test_a_sheet_has_room_for_its_rows_columns_and_labels():
    image = image_grid([noise(128, 128)] * 5, ["label"] * 5, columns=3, lines=2)
    assert image.size == (3 * (128 + GAP) + GAP, 2 * (128 + 2 * LINE + GAP) + GAP)


def test_each_image_appears_in_the_sheet_in_reading_order():
    images = [np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8) for seed in range(5)]
    shown = np.asarray(image_grid(images, ["a caption"] * 5, columns=3, lines=1))
    for index, pixels in enumerate(images):
        top, left = GAP + index // 3 * (128 + LINE + GAP), GAP + index % 3 * (128 + GAP)
        np.testing.assert_array_equal(shown[top : top + 128, left : left + 128], pixels)


def test_images_of_several_shapes_do_not_cover_each_other_or_their_labels():
    images = [np.full((*size, 3), 90, np.uint8) for size in ((128, 256), (256, 128), (256, 256), (128, 256))]
    shown = np.asarray(image_grid(images, ["a caption that is wider than the narrow image is"] * 4, columns=2, lines=1))
    assert shown.shape[:2] == (2 * (256 + LINE + GAP) + GAP, 2 * (256 + GAP) + GAP)
    for index, pixels in enumerate(images):
        height, width = pixels.shape[:2]
        top, left = GAP + index // 2 * (256 + LINE + GAP), GAP + index % 2 * (256 + GAP)
        np.testing.assert_array_equal(shown[top : top + height, left : left + width], pixels)
        assert shown[top + height : top + height + LINE, left + 150 : left + 256].min() < 100


@pytest.mark.parametrize(("size", "expected"), [
    ((512, 1024), (128, 256)), ((768, 384), (256, 128)), ((256, 100), (256, 100)), ((64, 64), (64, 64)),
])  # fmt: skip
def test_shrinking_bounds_the_longer_side_and_never_enlarges(size, expected):
    assert shrink(np.zeros((*size, 3), np.uint8), 256).shape == (*expected, 3)


@pytest.mark.parametrize(("side", "scale"), [(64, 2), (50, 3), (200, 1)])
def test_small_images_are_enlarged_by_whole_pixels(side, scale):
    pixels = noise(side, side)
    shown = np.asarray(image_grid([pixels], [""], columns=1, lines=0))[GAP:-GAP, GAP:-GAP]
    np.testing.assert_array_equal(shown, pixels.repeat(scale, 0).repeat(scale, 1))
    assert shown.shape[1] >= MIN_TILE


def test_the_label_is_written_under_the_image():
    black = np.zeros((128, 128, 3), np.uint8)
    under = GAP + 128
    bare, written = (np.asarray(image_grid([black], [label], columns=1, lines=1)) for label in ("", "a sks dog"))
    np.testing.assert_array_equal(bare[:under], written[:under])
    assert (bare[under:] == 255).all()
    assert written[under:].min() < 100


def test_an_image_without_a_label_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        image_grid([noise(8, 8)] * 2, ["one"], columns=2)
