"""Class images that are there already: what may be reused, and never anyone else's file touched."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import DataConfig, Subject, TextConfig
from jaxbooth.data.class_images import open_all_class_images
from jaxbooth.data.images import scan_folder
from jaxbooth.errors import UserError
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from tests.class_images import (
    Stopped,
    config,
    contents,
    demo_base,
    generate_all,
    generate_image_batch,
    image,
    manifest,
    opened,
    stopping,
)

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
        ({"text": TextConfig(clip_skip=1)}, "clip_skip"),
        ({"text": TextConfig(max_token_chunks=2)}, "max_token_chunks"),
    ],
)
def test_images_made_in_another_way_are_not_reused(tmp_path, change, key):
    generate_all(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"manifest\.json.* made with {key} = .*--data\.class-dir"):
        opened(config(tmp_path, **change))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_images_of_another_model_are_not_reused(tmp_path, component):
    generate_all(tmp_path / "class")
    other = shutil.copytree(DEMO_MODEL, tmp_path / "model")
    (weights,) = (other / component).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\7")
    with pytest.raises(UserError, match="model_fingerprint"):
        opened(config(tmp_path / "class"), other)


def test_images_of_another_prediction_type_are_not_reused(tmp_path):
    generate_all(tmp_path / "class")
    other = shutil.copytree(DEMO_MODEL, tmp_path / "model")
    assert opened(config(tmp_path / "class"), other).missing == 0
    scheduler = other / "scheduler" / "scheduler_config.json"
    write_json(scheduler, read_json(scheduler) | {"prediction_type": "v_prediction"})
    with pytest.raises(UserError, match="model_fingerprint"):
        opened(config(tmp_path / "class"), other)


def test_a_manifest_from_before_text_settings_were_recorded_means_their_defaults(tmp_path):
    generate_all(tmp_path)
    old = manifest(tmp_path)
    assert (old["settings"].pop("clip_skip"), old["settings"].pop("max_token_chunks")) == (0, 1)
    write_json(tmp_path / "manifest.json", old)
    assert opened(config(tmp_path)).missing == 0
    with pytest.raises(UserError, match="clip_skip = 0, but the run asks for 1"):
        opened(config(tmp_path, text=TextConfig(clip_skip=1)))


def test_the_same_model_under_another_name_is_no_difference(tmp_path):
    generate_all(tmp_path)
    assert opened(config(tmp_path, model="/elsewhere/tiny-emoji")).missing == 0


@pytest.mark.parametrize("change", [{"rows": 1}, {"num_class_images": 6}, {"crop": "random"}])
def test_what_does_not_make_the_images_may_differ(tmp_path, change):
    generate_all(tmp_path)
    assert opened(config(tmp_path, **change)).missing == 0


def test_a_manifest_may_have_a_byte_order_mark(tmp_path):
    generate_all(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "manifest.json").read_bytes())
    assert opened(config(tmp_path)).missing == 0


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"name": "my site", "images": []}', '{"settings": {}, "images": {"0": ["a"]}}', "[" * 99_999],
)
def test_a_manifest_that_is_not_ours_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        opened(config(tmp_path))
    assert (tmp_path / "manifest.json").read_text() == text


# Images of one's own


def test_own_images_are_counted_and_never_touched(tmp_path):
    for name in ("cat 1.jpg", "cat 2.webp"):
        Image.fromarray(image(50)).save(tmp_path / name)
    (tmp_path / "cat 1.txt").write_text("a grey cat")
    own = contents(tmp_path)
    classes = generate_all(tmp_path, total=5)
    assert {name: content for name, content in contents(tmp_path).items() if name in own} == own
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == [f"class-{index:05d}.png" for index in range(3)]
    assert (classes.user_files, classes.found) == (["cat 1.jpg", "cat 2.webp"], 5)


def test_enough_own_images_mean_nothing_is_painted_or_written(tmp_path):
    for index in range(3):
        Image.fromarray(image(index)).save(tmp_path / f"{index}.png")
    before = contents(tmp_path)
    classes = generate_all(tmp_path, stopping(generate_image_batch, 0), total=2)
    assert (classes.found, classes.missing) == (3, 0)
    assert contents(tmp_path) == before


def test_hidden_images_masks_and_folders_do_not_count(tmp_path):
    for name in (".thumb.png", "cat.mask.png", "other.mask.PNG"):
        Image.fromarray(image(0)).save(tmp_path / name)
    (tmp_path / "album.png").mkdir()
    assert opened(config(tmp_path)).found == 0
    Image.fromarray(image(0)).save(tmp_path / "cat.png")
    assert opened(config(tmp_path)).user_files == ["cat.png"]
    assert [found.path.name for found in scan_folder(tmp_path, "a cat", "class").images] == ["cat.png"]


def test_an_own_image_in_the_way_is_named_however_often_one_tries(tmp_path):
    Image.fromarray(image(9)).save(tmp_path / "class-00001.png")
    own = (tmp_path / "class-00001.png").read_bytes()
    for _ in range(2):
        with pytest.raises(UserError, match=r"class-00001\.png is in the way"):
            generate_all(tmp_path, total=4)
        assert (tmp_path / "class-00001.png").read_bytes() == own


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "prior").write_text("a file")
    with pytest.raises(UserError, match="prior"):
        opened(config(tmp_path / "prior"))


# Several subjects


@pytest.mark.parametrize(("folders", "expected"), [
    ((None, None, None), ["run/prior/a-cat", "run/prior/a-cat", "run/prior/a-dog"]),
    (("x", None, None), ["x", "x", "run/prior/a-dog"]),
    ((None, "x", "y"), ["x", "x", "y"]),
    (("x", "y", None), ["x", "y", "run/prior/a-dog"]),
])  # fmt: skip
def test_subjects_of_one_class_share_its_folder_unless_they_name_their_own(tmp_path, folders, expected):
    prompts = ("a cat", "a cat", "a dog")
    subjects = tuple(
        Subject(instance_dir=Path("in"), instance_prompt=f"sks {index}", class_prompt=prompt, class_dir=folder)
        for index, (prompt, folder) in enumerate(
            zip(prompts, [name and tmp_path / name for name in folders], strict=True)
        )
    )
    run = Config(run_dir=tmp_path / "run", data=DataConfig(subjects=subjects, resolution=64))
    sets, class_of = open_all_class_images(demo_base(), run.model, run.data, run.prior, run.subjects, run.run_dir)
    assert [sets[number].folder for number in class_of] == [tmp_path / name for name in expected]
    assert len(sets) == len(set(expected))


# The plan


def test_the_plan_of_an_empty_folder_names_what_will_be_made(tmp_path):
    plan = opened(config(tmp_path / "new", 200)).summary()
    assert plan == "200 class images (0 found, 200 to generate from demo, prompt 'a cat')"
    assert not (tmp_path / "new").exists()


def test_the_plan_of_a_partial_set_counts_both_kinds(tmp_path):
    with pytest.raises(Stopped):
        generate_all(tmp_path, stopping(generate_image_batch, 1), batch=3)
    Image.fromarray(image(9)).save(tmp_path / "own.png")
    plan = opened(config(tmp_path, 10)).summary()
    assert plan == "10 class images (4 found, 6 to generate from demo, prompt 'a cat')"


def test_the_plan_of_a_complete_set_says_so(tmp_path):
    generate_all(tmp_path, total=3)
    assert opened(config(tmp_path, 2)).summary() == "3 class images found, none to generate"
