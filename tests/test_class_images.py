"""Class images: the same set whatever happens on the way."""

import numpy as np
import pytest
from PIL import Image

from jaxbooth.errors import RunFailure
from tests.class_images import (
    Stopped,
    config,
    contents,
    generate_all,
    generate_flat_at,
    generate_image_batch,
    image,
    manifest,
    opened,
    stopping,
)

# What is made


def test_a_fresh_folder_gets_numbered_images_and_a_manifest(tmp_path):
    classes = generate_all(tmp_path / "prior", total=3)
    assert sorted(contents(tmp_path / "prior")) == [
        "class-00000.png", "class-00001.png", "class-00002.png", "manifest.json"
    ]  # fmt: skip
    assert (classes.found, classes.missing, classes.dropped) == (3, 0, 0)


def test_images_are_saved_without_loss_and_say_what_made_them(tmp_path):
    generate_all(tmp_path, total=3)
    with Image.open(tmp_path / "class-00002.png") as saved:
        np.testing.assert_array_equal(saved, image(2))
        assert (saved.text["index"], saved.text["prompt"], saved.text["seed"]) == ("2", "a cat", "0")
        assert (saved.text["sampler"], saved.text["steps"], saved.text["guidance_scale"]) == ("ddpm", "20", "3.0")


@pytest.mark.parametrize("batch", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("bad", [set(), {0, 3, 7}])
def test_the_set_is_the_same_whatever_the_batch_size(tmp_path, batch, bad):
    generate_all(tmp_path / "one", generate_flat_at(bad), batch=3)
    generate_all(tmp_path / "other", generate_flat_at(bad), batch=batch)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_no_more_is_painted_than_is_needed(tmp_path):
    asked = []

    def counting(indices: list[int]) -> np.ndarray:
        asked.append(list(indices))
        return generate_image_batch(indices)

    generate_all(tmp_path, counting, batch=3, total=7)
    assert asked == [[0, 1, 2], [3, 4, 5], [6]]


def test_a_complete_set_paints_nothing(tmp_path):
    generate_all(tmp_path)
    before = contents(tmp_path)
    generate_all(tmp_path, stopping(generate_image_batch, 0))
    assert contents(tmp_path) == before


def test_a_larger_set_keeps_the_smaller_one(tmp_path):
    generate_all(tmp_path / "grown", total=4)
    generate_all(tmp_path / "grown", total=7)
    generate_all(tmp_path / "whole", total=7)
    assert contents(tmp_path / "grown") == contents(tmp_path / "whole")


# Interruptions


@pytest.mark.parametrize("batches", [0, 1, 2])
@pytest.mark.parametrize("bad", [set(), {1, 4}])
def test_an_interrupted_generation_continues_to_the_same_bytes(tmp_path, batches, bad):
    with pytest.raises(Stopped):
        generate_all(tmp_path / "interrupted", stopping(generate_flat_at(bad), batches))
    generate_all(tmp_path / "interrupted", generate_flat_at(bad), batch=2)
    generate_all(tmp_path / "whole", generate_flat_at(bad))
    assert contents(tmp_path / "interrupted") == contents(tmp_path / "whole")


def test_an_interruption_keeps_the_batches_that_were_done(tmp_path):
    with pytest.raises(Stopped):
        generate_all(tmp_path, stopping(generate_image_batch, 2), batch=3)
    classes = opened(config(tmp_path))
    assert (classes.found, classes.missing) == (6, 1)


def test_a_crash_between_manifest_and_images_recovers(tmp_path):
    generate_all(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    generate_all(tmp_path / "crashed", batch=3, total=6)
    for index in (4, 5):
        (tmp_path / "crashed" / f"class-{index:05d}.png").unlink()
    classes = generate_all(tmp_path / "crashed")
    assert contents(tmp_path / "crashed") == expected
    assert classes.user_files == []


def test_a_manifest_without_any_of_its_images_recovers(tmp_path):
    generate_all(tmp_path)
    expected = contents(tmp_path)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert opened(config(tmp_path)).found == 0
    generate_all(tmp_path)
    assert contents(tmp_path) == expected


def test_a_listed_image_that_is_missing_is_made_again(tmp_path):
    generate_all(tmp_path)
    written = {name: content for name, content in contents(tmp_path).items() if name.endswith(".png")}
    listed = manifest(tmp_path)["images"]
    (tmp_path / "class-00002.png").unlink()
    assert opened(config(tmp_path)).missing == 1
    generate_all(tmp_path)
    assert {name: content for name, content in contents(tmp_path).items() if name.endswith(".png")} == written
    assert manifest(tmp_path)["images"] == listed


# Near-constant images


def test_near_constant_images_are_made_anew_with_the_next_numbers_and_counted(tmp_path):
    classes = generate_all(tmp_path, generate_flat_at({1, 5}), total=5)
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == [f"class-{i:05d}.png" for i in (0, 2, 3, 4, 6)]
    assert (classes.found, classes.dropped) == (5, 2)


def test_near_constant_images_stay_counted_when_the_folder_is_opened_again(tmp_path):
    generate_all(tmp_path, generate_flat_at({1, 5}), total=5)
    classes = opened(config(tmp_path, 5))
    assert (classes.found, classes.missing, classes.dropped) == (5, 0, 2)
    assert [index for index, name in manifest(tmp_path)["images"].items() if name is None] == ["1", "5"]


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 0, 0), (20, 90, 200)])
def test_a_flat_image_of_any_colour_is_near_constant(tmp_path, colour):
    assert generate_all(tmp_path, generate_flat_at({0}, colour), total=2).dropped == 1


def test_a_faint_but_structured_image_is_kept(tmp_path):
    faint = np.full((8, 8, 3), 100, np.uint8)
    faint[:, 4:] = 120
    classes = generate_all(tmp_path, lambda indices: np.stack([faint] * len(indices)), total=2)
    assert (classes.found, classes.dropped) == (2, 0)


def test_a_model_that_never_makes_a_good_image_fails_and_names_the_prompt(tmp_path):
    with pytest.raises(RunFailure, match=r"near-constant; check .* --data\.class-prompt 'a cat'"):
        generate_all(tmp_path, generate_flat_at(set(range(1000))), batch=4, total=5)
    assert not list(tmp_path.glob("*.png"))
