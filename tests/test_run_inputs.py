"""What is said, shown and refused of a run's images before any weight is read."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxbooth.base.trainable import add_trainable
from jaxbooth.config.run_config import Config
from jaxbooth.data import decoding, images
from jaxbooth.data.crops import load_augmentations
from jaxbooth.data.decoding import decode
from jaxbooth.data.image_grid import GAP, LINE
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.errors import UserError
from jaxbooth.runs.contact_sheet import MAX_TILES, TILE_SIDE, contact_sheet
from jaxbooth.runs.inputs import RunInputs, crop_spec, read_inputs, scan_class_folders
from jaxbooth.runs.training_data import encode_training_data
from tests.made_up_images import caption_list, noise, put

MIXED = [(64, 64), (128, 64), (64, 64), (64, 128)]


def configure(folder: Path, **sections) -> Config:
    """A run on the images of a folder, without a prior term unless it is asked for."""
    data = {"instance_dir": folder, "instance_prompt": "a sks cat", "resolution": 64} | sections.pop("data", {})
    return Config.model_validate({"prior": {"method": "none"}} | sections | {"data": data})


def put_noise(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    """A folder of images of the given widths and heights."""
    folder.mkdir(exist_ok=True)
    for index, size in enumerate(sizes):
        Image.fromarray(noise(*size)).save(folder / f"{index}.png")
    return folder


def inputs(base, folder: Path, **sections) -> tuple[Config, RunInputs]:
    """A run's configuration and what it finds."""
    config = configure(folder, **sections)
    return config, read_inputs(config, add_trainable(base, config))


def make_sheet(config: Config, read: RunInputs) -> Image.Image:
    """The contact sheet of what was found."""
    return contact_sheet(config, read, TrainingImages(config.resolution, config.data.masks))


# Shapes


def test_several_buckets_are_said_with_the_programs_that_they_need(base, tmp_path, capsys):
    inputs(base, put_noise(tmp_path, MIXED), data={"buckets": True})
    output = capsys.readouterr().out
    assert "buckets: 80 x 48 (1), 64 x 64 (2), 48 x 80 (1)" in output
    assert "the train step will be compiled 3 times" in output


@pytest.mark.parametrize("buckets", [False, True])
def test_one_shape_is_no_news(base, tmp_path, capsys, buckets):
    inputs(base, put_noise(tmp_path, [(64, 64)]), data={"buckets": buckets})
    assert "compiled" not in capsys.readouterr().out


def test_an_images_random_crops_do_not_depend_on_buckets(base, tmp_path):
    folder = put_noise(tmp_path, MIXED)
    crops = {"crop": "random", "random_crops": 3}
    found = {}
    for buckets in (False, True):
        config, read = inputs(base, folder, data=crops | {"buckets": buckets})
        (files,) = read.shapes[64, 64]
        seen = zip(files, load_augmentations(files, crop_spec(config, (64, 64))), strict=True)
        found[buckets] = {file.path.name: augmentations.pixels for file, augmentations in seen}
    assert set(found[True]) == {"0.png", "2.png"}
    for name, pixels in found[True].items():
        np.testing.assert_array_equal(pixels, found[False][name])


@pytest.mark.parametrize("buckets", [False, True])
def test_one_warning_names_the_image_that_is_enlarged_most(base, tmp_path, capsys, buckets):
    inputs(base, put_noise(tmp_path, [(64, 64), (40, 40), (20, 20), (43, 43)]), data={"buckets": buckets})
    output = capsys.readouterr().out
    assert "warning: 2 of 4 image(s) are too small and will look blurred, 2.png most (enlarged 3.2 times)" in output
    assert "--data.resolution" in output


def test_a_bucket_may_need_less_of_an_image_than_the_square_does(base, tmp_path, capsys):
    folder = put_noise(tmp_path, [(64, 36)])  # 80 x 48 of it is 1.33 times its size, 64 x 64 is 1.78 times
    inputs(base, folder, data={"buckets": True})
    assert "blurred" not in capsys.readouterr().out
    inputs(base, folder)
    assert "enlarged 1.8 times" in capsys.readouterr().out


# The contact sheet


def test_the_sheets_cells_have_room_for_the_largest_shape(base, tmp_path):
    image = make_sheet(*inputs(base, put_noise(tmp_path, MIXED), data={"buckets": True}))
    cell = 2 * 80 + GAP, 2 * 80 + 2 * LINE + GAP  # enlarged twice
    assert image.size == (4 * cell[0] + GAP, cell[1] + GAP)


def test_large_images_are_shown_smaller_in_their_shape(base, tmp_path):
    image = make_sheet(*inputs(base, put_noise(tmp_path, [(512, 512)]), data={"resolution": 512}))
    assert image.size == (TILE_SIDE + 2 * GAP, TILE_SIDE + 2 * LINE + 2 * GAP)


def test_the_sheet_is_cut_and_says_what_it_leaves_out(base, tmp_path, capsys):
    crops = {"crop": "random", "random_crops": 90}
    image = make_sheet(*inputs(base, put_noise(tmp_path, [(70, 64)] * 3), data=crops))
    assert image.height == MAX_TILES // 5 * (128 + 2 * LINE + GAP) + GAP
    assert "the contact sheet shows 200 of 270 augmentations and leaves 70 out" in capsys.readouterr().out


def test_a_damaged_image_beyond_the_sheet_is_named_all_the_same(base, tmp_path):
    folder = put_noise(tmp_path, [(70, 64)] * 3)
    config, read = inputs(base, folder, data={"crop": "random", "random_crops": 150})
    (folder / "2.png").write_bytes(b"I am no image")
    with pytest.raises(UserError, match=r"2\.png cannot be decoded"):
        make_sheet(config, read)


# Decoding


@pytest.mark.parametrize(
    "data",
    [{}, {"masks": True}, {"buckets": True, "flip": True, "crop": "random", "random_crops": 2, "masks": True}],
    ids=["squares", "masks", "buckets"],
)
def test_no_image_is_decoded_twice(data, base, params, mesh, tmp_path, monkeypatch):
    folder, classes = put_noise(tmp_path / "cats", MIXED), put_noise(tmp_path / "class", [(64, 64), (80, 64)])
    Image.new("L", MIXED[0], 255).save(folder / "0.mask.png")
    decoded = Counter()

    def count(path, *arguments, **settings):
        decoded[path.relative_to(tmp_path).as_posix()] += 1
        return decode(path, *arguments, **settings)

    for module in (images, decoding):
        monkeypatch.setattr(module, "decode", count)
    settings = {"class_dir": classes, "class_prompt": "a cat", "num_class_images": 2} | data
    config, read = inputs(base, folder, data=settings, prior={})
    photos = TrainingImages(config.resolution, config.data.masks)
    contact_sheet(config, read, photos)
    class_files = [found.images for found in scan_class_folders((), read.classes)]
    made = encode_training_data(config, read, photos, params, class_files, mesh)
    assert sum(len(cache.images.mean) for cache in made.caches) == 4 + 2 * len(made.caches)
    assert [photos.square(file).shape for file in read.images] == [(64, 64, 3)] * 4
    masks = ["cats/0.mask.png"] if config.data.masks else []
    assert decoded == Counter([*(f"cats/{index}.png" for index in range(4)), "class/0.png", "class/1.png", *masks])


# What is not used


def test_a_warning_names_up_to_five_files_that_are_not_used_and_counts_the_rest(base, tmp_path, capsys):
    folder = put_noise(tmp_path, [(64, 64)])
    (folder / ".hidden").touch()
    for index in range(7):
        (folder / f"{index}.mp4").touch()
    inputs(base, folder)
    output = " ".join(capsys.readouterr().out.split())
    assert "instance: 1 image in" in output
    assert "8 other files skipped" in output
    names = ", ".join(f"{index}.mp4 (.mp4 is not read)" for index in range(5))
    assert f"warning: {folder}: not used: {names} and 2 more." in output


def test_hidden_files_are_counted_without_a_warning(base, tmp_path, capsys):
    folder = put_noise(tmp_path, [(64, 64)])
    (folder / ".DS_Store").touch()
    inputs(base, folder)
    output = capsys.readouterr().out
    assert "1 other file skipped" in output
    assert "not used" not in output


def test_captions_that_a_list_overrules_are_named(base, tmp_path, capsys):
    folder = put_noise(tmp_path, [(64, 64)])
    (folder / "0.txt").write_text("one")
    caption_list(folder, {"file_name": "0.png", "text": "two"})
    inputs(base, folder)
    assert "metadata has the captions of these images, so not used: 0.txt." in capsys.readouterr().out


def test_what_is_not_used_of_a_class_folder_is_named_too(base, tmp_path, capsys):
    folder, classes = put_noise(tmp_path / "cats", [(64, 64)]), put_noise(tmp_path / "class", [(64, 64)])
    (classes / "deep").mkdir()
    put(classes / "deep" / "b.png")
    inputs(base, folder, data={"class_dir": classes, "class_prompt": "a cat"}, prior={})
    assert f"warning: {classes}: not used: deep (subfolder with 1 image(s))." in capsys.readouterr().out


# Class images of the user's own


def test_a_placeholder_token_in_the_caption_of_a_class_image_is_refused(base, tmp_path):
    folder = put_noise(tmp_path / "cats", [(64, 64)])
    (tmp_path / "class").mkdir()
    put(tmp_path / "class" / "own.png")
    sections = {
        "data": {"class_dir": tmp_path / "class", "class_prompt": "a cat", "instance_prompt": "a <sks> cat"},
        "text": {"placeholder_tokens": ("<sks>",)}, "prior": {},
    }  # fmt: skip
    inputs(base, folder, **sections)
    (tmp_path / "class" / "own.txt").write_text("a <sks> cat")
    with pytest.raises(UserError, match=r"own\.png: the caption of this class image holds the placeholder token <sks>"):
        inputs(base, folder, **sections)


def test_an_empty_caption_of_a_class_image_is_refused(base, tmp_path):
    folder = put_noise(tmp_path / "cats", [(64, 64)])
    (tmp_path / "class").mkdir()
    put(tmp_path / "class" / "own.png")
    (tmp_path / "class" / "own.txt").write_text(" ")
    with pytest.raises(UserError, match=r"own\.txt: the caption is empty"):
        inputs(base, folder, data={"class_dir": tmp_path / "class", "class_prompt": "a cat"}, prior={})
