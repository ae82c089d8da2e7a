"""Which images are held out, that nothing trains on them, and what of them is refused."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxbooth.assets import DEMO_SUBJECT
from jaxbooth.base.trainable import add_trainable
from jaxbooth.base.vae import ImageEncoder
from jaxbooth.config.rules import check_config
from jaxbooth.config.run_config import Config, resolve_paths
from jaxbooth.data.held_out import held_out_names
from jaxbooth.data.images import scan_folder
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.errors import UserError
from jaxbooth.metrics.scorer import reference_images
from jaxbooth.runs.held_out_latents import encode_held_out, group_held_out, held_out_captions
from jaxbooth.runs.inputs import RunInputs, read_inputs
from jaxbooth.runs.overlap import check_run_folders
from jaxbooth.runs.training_data import caption_tables, encode_training_data
from tests.made_up_images import noise

NAMES = [f"{number}.jpg" for number in range(20)]


def configure(folder: Path = DEMO_SUBJECT, **sections) -> Config:
    """A run on the images of a folder (default: the embedded cat's five), without a prior term."""
    data = {"instance_dir": folder, "instance_prompt": "a sks cat", "resolution": 64} | sections.pop("data", {})
    return Config.model_validate({"prior": {"weight": 0}} | sections | {"data": data})


def read(base, config: Config) -> RunInputs:
    """What a run finds, once its settings are in order."""
    check_config(config)
    return read_inputs(config, add_trainable(base, config))


def names(files) -> list[str]:
    return [file.path.name for file in files]


def put(folder: Path, *sizes: tuple[int, int]) -> Path:
    """A folder of images of noise, of the given widths and heights, each unlike the others."""
    folder.mkdir()
    for number, size in enumerate(sizes):
        Image.fromarray(np.roll(noise(*size), 5 * number, axis=0)).save(folder / f"{number}.png")
    return folder


# Which ones


def test_it_is_decided_by_the_seed_and_the_names_and_not_by_their_order():
    chosen = held_out_names(NAMES, 5, 7)
    assert len(chosen) == 5
    assert held_out_names(NAMES[::-1], 5, 7) == chosen
    assert held_out_names(NAMES, 5, 8) != chosen
    assert held_out_names(NAMES, 3, 7) < chosen


def test_every_photo_is_held_out_by_about_as_many_seeds():
    times = [sum(name in held_out_names(NAMES, 5, seed) for seed in range(400)) for name in NAMES]
    assert min(times) > 60  # 100 are expected, with a deviation of 9
    assert max(times) < 140


def test_another_photo_takes_the_place_of_one_at_most():
    before = held_out_names(NAMES, 5, 7)
    assert all(len(held_out_names([*NAMES, f"new{number}.jpg"], 5, 7) & before) >= 4 for number in range(50))


def test_the_rest_is_trained_on_with_the_indices_that_it_had(base):
    every = scan_folder(DEMO_SUBJECT, "a sks cat", "instance").images
    found = read(base, configure(data={"hold_out": 2}))
    assert [len(found.images), len(found.held_out_images)] == [3, 2]
    assert sorted([*found.images, *found.held_out_images]) == every
    assert [file for files in found.shapes.values() for subject in files for file in subject] == found.images


def test_each_subject_has_its_own(base, tmp_path):
    first, second = put(tmp_path / "a", *[(64, 64)] * 3), put(tmp_path / "b", *[(80, 80)] * 4)
    subjects = [
        {"instance_dir": first, "instance_prompt": "a sks cat"},
        {"instance_dir": second, "instance_prompt": "an ohwx dog"},
    ]
    data = {"subjects": subjects, "instance_dir": None, "instance_prompt": None}
    found = read(base, configure(data=data | {"hold_out": 1}))
    assert [len(folder.images) for folder in found.instances] == [2, 3]
    assert [len(images) for images in found.held_out] == [1, 1]
    subjects[1]["validation_dir"] = put(tmp_path / "c", (48, 48))
    found = read(base, configure(data=data))
    assert [len(folder.images) for folder in found.instances] == [3, 4]
    assert [[file.caption for file in images] for images in found.held_out] == [[], ["an ohwx dog"]]


def test_a_folder_of_them_has_captions_like_the_photos(base, tmp_path):
    folder = put(tmp_path / "held out", (64, 64), (64, 64))
    (folder / "1.txt").write_text("a sks cat, asleep")
    found = read(base, configure(data={"validation_dir": folder}))
    assert [file.caption for file in found.held_out_images] == ["a sks cat", "a sks cat, asleep"]
    assert len(found.images) == 5


# Nothing trains on them


def test_they_never_enter_the_training_cache(base, params, mesh, tmp_path):
    config = configure(data={"hold_out": 2})
    inputs = read(base, config)
    on_device = jax.device_put(params)
    data = encode_training_data(config, inputs, TrainingImages(64, False), on_device, [], mesh)
    cached = np.asarray(data.caches[0].images.mean)
    assert len(cached) == 3
    ((shape, members),) = group_held_out(config, inputs).items()
    captions = held_out_captions(inputs, config.subjects)
    encoder = ImageEncoder(inputs.base, on_device["vae"], mesh)
    held_out = encode_held_out(inputs.base, encoder, members, shape, captions)
    scale = inputs.base.vae_config.scaling_factor
    distances = np.abs(scale * cached[:, 0][:, None] - held_out.latents[None]).mean(axis=(2, 3, 4))
    assert distances.shape == (3, 2)
    assert distances.min() > 0.05


def test_captions_without_the_identifier_stay_with_their_images(base, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(DEMO_SUBJECT, folder)
    for path in folder.glob("*.png"):
        path.with_suffix(".txt").write_text(f"a sks cat, {path.stem}")
    prior = {"method": ["output-preservation"]}
    inputs = read(base, configure(folder, data={"hold_out": 2, "class_prompt": "a cat"}, prior=prior))
    captions = [prompt for file in inputs.images for prompt in file.prompts]
    *_, rows = caption_tables(inputs.images, captions)
    assert rows is not None
    assert [captions[row] for row in rows[:, 0]] == [f"a cat, {file.path.stem}" for file in inputs.images]
    assert len(rows) == 3


@pytest.mark.parametrize("data", [{"hold_out": 1}, {}])
def test_the_caption_of_a_held_out_image_has_the_trigger_word_and_its_tags_as_written(base, tmp_path, data):
    folder, held_out = tmp_path / "photos", tmp_path / "held out"
    shutil.copytree(DEMO_SUBJECT, folder)
    held_out.mkdir()
    Image.new("RGB", (64, 64), "red").save(held_out / "red.png")
    for path in (*folder.glob("*.png"), held_out / "red.png"):
        path.with_suffix(".txt").write_text("cat, blue, red, green")
    text = {"trigger_word": "sks", "shuffle_tags": True, "tag_dropout": 0.5}
    inputs = read(base, configure(folder, data=data or {"validation_dir": held_out}, text=text))
    assert [file.caption for file in inputs.held_out_images] == ["sks, cat, blue, red, green"]


def test_generated_images_are_compared_with_what_was_trained_on(base):
    config = configure(data={"hold_out": 2})
    expected = reference_images(config.subjects, 64)[0]
    trained = [file.index for file in read(base, config).images]
    found = reference_images(config.subjects, 64, config.data.hold_out, config.seed)[0]
    np.testing.assert_array_equal(found, [expected[index] for index in trained])


def test_they_are_measured_in_the_bucket_that_they_would_be_trained_in(base, tmp_path):
    folder = put(tmp_path / "held out", (128, 64), (64, 64), (64, 128))
    inputs = read(base, configure(data={"validation_dir": folder, "buckets": True}))
    grouped = group_held_out(configure(data={"buckets": True}), inputs)
    assert {shape: names(member.file for member in members) for shape, members in grouped.items()} == {
        (48, 80): ["0.png"], (64, 64): ["1.png"], (80, 48): ["2.png"],
    }  # fmt: skip
    assert list(group_held_out(configure(), inputs)) == [(64, 64)]


# Bad input


def refusal(base, config: Config) -> str:
    """The sentence that refuses a configuration."""
    with pytest.raises(UserError) as refused:
        check_and_read(base, config)
    return str(refused.value)


def check_and_read(base, config: Config) -> RunInputs:
    """What a run does before it reads any weights."""
    check_run_folders(resolve_paths(config))
    return read(base, config)


@pytest.mark.parametrize("count", [5, 9])
def test_not_all_photos_can_be_held_out(base, count):
    sentence = refusal(base, configure(data={"hold_out": count}))
    assert sentence == (
        f"--data.hold-out {count} leaves no photo to train on: {DEMO_SUBJECT} has 5 images; hold out 4 at most."
    )


def test_the_only_photo_cannot_be_held_out(base, tmp_path):
    folder = put(tmp_path / "one", (64, 64))
    assert refusal(base, configure(folder, data={"hold_out": 1})).endswith("has 1 image; leave the flag out.")


def test_photos_are_taken_out_or_lie_in_a_folder_of_their_own(base, tmp_path):
    folder = put(tmp_path / "held out", (64, 64))
    sentence = refusal(base, configure(data={"hold_out": 1, "validation_dir": folder}))
    assert sentence.startswith("--data.hold-out and --data.validation-dir exclude each other")
    subject = {"instance_dir": DEMO_SUBJECT, "instance_prompt": "a sks cat", "validation_dir": folder}
    data = {"subjects": [subject], "instance_dir": None, "instance_prompt": None, "hold_out": 1}
    sentence = refusal(base, configure(data=data))
    assert sentence.startswith("--data.hold-out and data.subjects, entry 1: validation_dir exclude each other")


def test_a_folder_belongs_into_the_list_of_subjects_where_there_is_one(base, tmp_path):
    subject = {"instance_dir": DEMO_SUBJECT, "instance_prompt": "a sks cat"}
    data = {"subjects": [subject], "instance_dir": None, "instance_prompt": None, "validation_dir": tmp_path}
    sentence = refusal(base, configure(data=data))
    assert sentence == "--data.validation-dir and data.subjects exclude each other; put it into the list."


@pytest.mark.parametrize("ending", ["png", "webp", "bmp"])
def test_a_photo_that_is_trained_on_is_found_by_its_pixels(base, tmp_path, ending):
    folder = put(tmp_path / "held out", (64, 64))
    copy = folder / f"innocent.{ending}"
    original = DEMO_SUBJECT / "crying.png"
    with Image.open(original) as image:
        flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
        flat.save(copy, **({"lossless": True} if ending == "webp" else {}))
    sentence = refusal(base, configure(data={"validation_dir": folder}))
    assert sentence == (
        f"{copy} is held out and shows the same pixels as {original}, which is trained on, so its loss would say "
        "nothing; remove one of the two."
    )


def test_so_is_a_second_copy_of_a_photo_that_is_held_out(base, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(DEMO_SUBJECT, folder)
    (held_out,) = held_out_names([path.name for path in folder.glob("*.png")] + ["copy.png"], 1, 0) - {"copy.png"}
    shutil.copy(folder / held_out, folder / "copy.png")
    sentence = refusal(base, configure(folder, data={"hold_out": 1}))
    assert sentence.startswith(f"{folder / held_out} is held out and shows the same pixels as {folder / 'copy.png'}")


def test_the_training_folder_itself_is_no_other_set(base):
    assert "is held out and shows the same pixels as" in refusal(base, configure(data={"validation_dir": DEMO_SUBJECT}))


def test_a_folder_that_is_missing_or_empty_is_named_with_its_flag(base, tmp_path):
    missing = tmp_path / "missing"
    assert refusal(base, configure(data={"validation_dir": missing})) == (
        f"--data.validation-dir: {missing} is not a folder."
    )
    (tmp_path / "empty").mkdir()
    assert refusal(base, configure(data={"validation_dir": tmp_path / "empty"})).startswith(
        f"--data.validation-dir: {tmp_path / 'empty'} holds no image"
    )


def test_an_image_that_cannot_be_decoded_is_named(base, tmp_path):
    folder = put(tmp_path / "held out", (64, 64))
    (folder / "torn.png").write_bytes((folder / "0.png").read_bytes()[:200])
    assert str(folder / "torn.png") in refusal(base, configure(data={"validation_dir": folder}))


def test_a_folder_that_the_run_writes_is_no_input(base, tmp_path):
    folder = put(tmp_path / "held out", (64, 64))
    sentence = refusal(base, configure(data={"validation_dir": folder}, run_dir=str(folder / "run")))
    assert f"--run-dir {folder / 'run'} lies in --data.validation-dir {folder}" in sentence


def test_the_best_validation_loss_needs_images_to_measure_it_on(base):
    sentence = refusal(base, configure(evaluation={"keep_best": "validation_loss"}))
    assert sentence == (
        "--evaluation.keep-best validation_loss needs images that are not trained on; name a folder of them with "
        "--data.validation-dir, or take some out with --data.hold-out."
    )
    read(base, configure(evaluation={"keep_best": "validation_loss", "patience": 3}, data={"hold_out": 1}))
