"""Class pictures: the same set whatever happens on the way, and never anyone else's file touched."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.config import Config, DataConfig, PriorConfig
from jaxbooth.data.prior import generate_missing, open_class_set
from jaxbooth.errors import RunFailure, UserError


class Stopped(Exception):
    """What an interrupted painter raises."""


def config(folder: Path, total: int = 7, **changes) -> Config:
    data = {"class_prompt": "a cat", "num_class_images": total, "class_dir": folder, "resolution": 64}
    prior = {"steps": 20, "guidance_scale": 3.0}
    return Config(
        data=DataConfig(**data | {key: changes.pop(key) for key in list(changes) if key in DataConfig.model_fields}),
        prior=PriorConfig(
            **prior | {key: changes.pop(key) for key in list(changes) if key in PriorConfig.model_fields}
        ),
        **changes,
    )


def picture(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def paint(indices: list[int]) -> np.ndarray:
    return np.stack([picture(index) for index in indices])


def flat(colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.uint8(colour), (8, 8, 3))


def paint_flat_at(bad: set[int], colour: tuple[int, int, int] = (40, 40, 40)):
    return lambda indices: np.stack([flat(colour) if index in bad else picture(index) for index in indices])


def stopping(paint, batches: int):
    """A painter that is interrupted after some batches."""
    left = iter(range(batches))

    def paint_until(indices: list[int]) -> np.ndarray:
        if next(left, None) is None:
            raise Stopped
        return paint(indices)

    return paint_until


def generate(folder: Path, paint=paint, batch: int = 3, total: int = 7):
    classes = open_class_set(config(folder, total), DEMO_MODEL)
    generate_missing(classes, paint, batch)
    return classes


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def manifest(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


# What is made


def test_a_fresh_folder_gets_numbered_pictures_and_a_manifest(tmp_path):
    classes = generate(tmp_path / "prior", total=3)
    assert sorted(contents(tmp_path / "prior")) == [
        "class-00000.png", "class-00001.png", "class-00002.png", "manifest.json"
    ]  # fmt: skip
    assert (classes.found, classes.missing, classes.dropped) == (3, 0, 0)


def test_pictures_are_saved_without_loss_and_say_what_made_them(tmp_path):
    generate(tmp_path, total=3)
    with Image.open(tmp_path / "class-00002.png") as image:
        np.testing.assert_array_equal(image, picture(2))
        assert (image.text["index"], image.text["prompt"], image.text["seed"]) == ("2", "a cat", "0")
        assert (image.text["sampler"], image.text["steps"], image.text["guidance_scale"]) == ("ddpm", "20", "3.0")


@pytest.mark.parametrize("batch", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("bad", [set(), {0, 3, 7}])
def test_the_set_is_the_same_whatever_the_batch_size(tmp_path, batch, bad):
    generate(tmp_path / "one", paint_flat_at(bad), batch=3)
    generate(tmp_path / "other", paint_flat_at(bad), batch=batch)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_no_more_is_painted_than_is_needed(tmp_path):
    asked = []

    def counting(indices: list[int]) -> np.ndarray:
        asked.append(list(indices))
        return paint(indices)

    generate(tmp_path, counting, batch=3, total=7)
    assert asked == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_complete_set_paints_nothing(tmp_path):
    generate(tmp_path)
    before = contents(tmp_path)
    generate(tmp_path, stopping(paint, 0))
    assert contents(tmp_path) == before


def test_a_larger_set_keeps_the_smaller_one(tmp_path):
    generate(tmp_path / "grown", total=4)
    generate(tmp_path / "grown", total=7)
    generate(tmp_path / "whole", total=7)
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")


# Interruptions


@pytest.mark.parametrize("batches", [0, 1, 2])
@pytest.mark.parametrize("bad", [set(), {1, 4}])
def test_an_interrupted_generation_continues_to_the_same_bytes(tmp_path, batches, bad):
    with pytest.raises(Stopped):
        generate(tmp_path / "interrupted", stopping(paint_flat_at(bad), batches))
    generate(tmp_path / "interrupted", paint_flat_at(bad), batch=2)
    generate(tmp_path / "whole", paint_flat_at(bad))
    assert contents(tmp_path / "interrupted") == contents(tmp_path / "whole")


def test_an_interruption_keeps_the_batches_that_were_done(tmp_path):
    with pytest.raises(Stopped):
        generate(tmp_path, stopping(paint, 2), batch=3)
    classes = open_class_set(config(tmp_path), DEMO_MODEL)
    assert (classes.found, classes.missing) == (6, 1)


def test_a_crash_between_manifest_and_pictures_recovers(tmp_path):
    generate(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    generate(tmp_path / "crashed", batch=3, total=6)
    for index in (4, 5):
        (tmp_path / "crashed" / f"class-{index:05d}.png").unlink()
    classes = generate(tmp_path / "crashed")
    assert contents(tmp_path / "crashed") == expected
    assert classes.own == []


def test_a_manifest_without_any_of_its_pictures_recovers(tmp_path):
    generate(tmp_path)
    expected = contents(tmp_path)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert open_class_set(config(tmp_path), DEMO_MODEL).found == 0
    generate(tmp_path)
    assert contents(tmp_path) == expected


def test_a_listed_picture_that_is_missing_is_made_again(tmp_path):
    generate(tmp_path)
    pictures = {name: content for name, content in contents(tmp_path).items() if name.endswith(".png")}
    images = manifest(tmp_path)["images"]
    (tmp_path / "class-00002.png").unlink()
    assert open_class_set(config(tmp_path), DEMO_MODEL).missing == 1
    generate(tmp_path)
    assert {name: content for name, content in contents(tmp_path).items() if name.endswith(".png")} == pictures
    assert manifest(tmp_path)["images"] == images


# Near-constant pictures


def test_near_constant_pictures_are_made_anew_with_the_next_numbers_and_counted(tmp_path):
    classes = generate(tmp_path, paint_flat_at({1, 5}), total=5)
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == [f"class-{i:05d}.png" for i in (0, 2, 3, 4, 6)]
    assert (classes.found, classes.dropped) == (5, 2)


def test_near_constant_pictures_stay_counted_when_the_folder_is_opened_again(tmp_path):
    generate(tmp_path, paint_flat_at({1, 5}), total=5)
    classes = open_class_set(config(tmp_path, 5), DEMO_MODEL)
    assert (classes.found, classes.missing, classes.dropped) == (5, 0, 2)
    assert [index for index, name in manifest(tmp_path)["images"].items() if name is None] == ["1", "5"]


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 0, 0), (20, 90, 200)])
def test_a_flat_picture_of_any_colour_is_near_constant(tmp_path, colour):
    assert generate(tmp_path, paint_flat_at({0}, colour), total=2).dropped == 1


def test_a_faint_but_structured_picture_is_kept(tmp_path):
    faint = np.full((8, 8, 3), 100, np.uint8)
    faint[:, 4:] = 120
    classes = generate(tmp_path, lambda indices: np.stack([faint] * len(indices)), total=2)
    assert (classes.found, classes.dropped) == (2, 0)


def test_a_model_that_never_makes_a_good_picture_fails_and_names_the_prompt(tmp_path):
    with pytest.raises(RunFailure, match=r"near-constant; check .* --data\.class-prompt 'a cat'"):
        generate(tmp_path, paint_flat_at(set(range(1000))), batch=4, total=5)
    assert not list(tmp_path.glob("*.png"))


# Settings


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"class_prompt": "a dog"}, "prompt"),
        ({"resolution": 128}, "resolution"),
        ({"sampler": "ddim"}, "sampler"),
        ({"steps": 21}, "steps"),
        ({"guidance_scale": 4.0}, "guidance_scale"),
        ({"seed": 1}, "seed"),
    ],
)
def test_pictures_made_in_another_way_are_not_reused(tmp_path, change, key):
    generate(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"manifest\.json.* made with {key} = .*--data\.class-dir"):
        open_class_set(config(tmp_path, **change), DEMO_MODEL)
    assert contents(tmp_path) == before


def test_pictures_of_another_model_are_not_reused(tmp_path):
    generate(tmp_path)
    other = tmp_path / "model"
    for source in DEMO_MODEL.rglob("*.safetensors"):
        target = other / source.relative_to(DEMO_MODEL)
        target.parent.mkdir(parents=True)
        content = bytearray(source.read_bytes())
        content[-1] ^= 1
        target.write_bytes(content)
    with pytest.raises(UserError, match="model_fingerprint"):
        open_class_set(config(tmp_path), other)


def test_the_same_model_under_another_name_is_no_difference(tmp_path):
    generate(tmp_path)
    assert open_class_set(config(tmp_path, model="/elsewhere/tiny-emoji"), DEMO_MODEL).missing == 0


@pytest.mark.parametrize("change", [{"batch_size": 1}, {"num_class_images": 6}, {"crop": "random"}])
def test_what_does_not_make_the_pictures_may_differ(tmp_path, change):
    generate(tmp_path)
    assert open_class_set(config(tmp_path, **change), DEMO_MODEL).missing == 0


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"name": "my site", "images": []}'])
def test_a_manifest_that_is_not_ours_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_class_set(config(tmp_path), DEMO_MODEL)
    assert (tmp_path / "manifest.json").read_text() == text


# Pictures of one's own


def test_own_pictures_are_counted_and_never_touched(tmp_path):
    for name in ("cat 1.jpg", "cat 2.webp"):
        Image.fromarray(picture(50)).save(tmp_path / name)
    (tmp_path / "cat 1.txt").write_text("a grey cat")
    own = contents(tmp_path)
    classes = generate(tmp_path, total=5)
    assert {name: content for name, content in contents(tmp_path).items() if name in own} == own
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == [f"class-{index:05d}.png" for index in range(3)]
    assert (classes.own, classes.found) == (["cat 1.jpg", "cat 2.webp"], 5)


def test_enough_own_pictures_mean_nothing_is_painted_or_written(tmp_path):
    for index in range(3):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}.png")
    before = contents(tmp_path)
    classes = generate(tmp_path, stopping(paint, 0), total=2)
    assert (classes.found, classes.missing) == (3, 0)
    assert contents(tmp_path) == before


def test_hidden_pictures_do_not_count(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / ".thumb.png")
    assert open_class_set(config(tmp_path), DEMO_MODEL).found == 0


def test_an_own_picture_in_the_way_is_named_however_often_one_tries(tmp_path):
    Image.fromarray(picture(9)).save(tmp_path / "class-00001.png")
    own = (tmp_path / "class-00001.png").read_bytes()
    for _ in range(2):
        with pytest.raises(UserError, match=r"class-00001\.png is in the way"):
            generate(tmp_path, total=4)
        assert (tmp_path / "class-00001.png").read_bytes() == own


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "prior").write_text("a file")
    with pytest.raises(UserError, match="prior"):
        open_class_set(config(tmp_path / "prior"), DEMO_MODEL)


# The plan


def test_the_plan_of_an_empty_folder_names_what_will_be_made(tmp_path):
    plan = open_class_set(config(tmp_path / "new", 200), DEMO_MODEL).plan()
    assert plan == "200 class images (0 found, 200 to generate from demo, prompt 'a cat')"
    assert not (tmp_path / "new").exists()


def test_the_plan_of_a_partial_set_counts_both_kinds(tmp_path):
    with pytest.raises(Stopped):
        generate(tmp_path, stopping(paint, 1), batch=3)
    Image.fromarray(picture(9)).save(tmp_path / "own.png")
    plan = open_class_set(config(tmp_path, 10), DEMO_MODEL).plan()
    assert plan == "10 class images (4 found, 6 to generate from demo, prompt 'a cat')"


def test_the_plan_of_a_complete_set_says_so(tmp_path):
    generate(tmp_path, total=3)
    assert open_class_set(config(tmp_path, 2), DEMO_MODEL).plan() == "3 class images found, none to generate"
