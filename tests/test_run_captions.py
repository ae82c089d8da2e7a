"""The captions of a run: what it makes of a folder, what output preservation sees of them, and what is said."""

from pathlib import Path

import numpy as np
import pytest

from jaxbooth.base.encoded_prompts import encode_batches
from jaxbooth.base.trainable import add_trainable
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject, TextConfig
from jaxbooth.data.caption_variants import split_tags, with_variants
from jaxbooth.data.class_captions import trigger_words, with_class_captions
from jaxbooth.data.images import ImageFile
from jaxbooth.data.latents import distinct_captions
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.errors import UserError
from jaxbooth.export.metadata import describe_tags
from jaxbooth.runs.caption_notes import log_captions
from jaxbooth.runs.contact_sheet import caption_label, contact_sheet
from jaxbooth.runs.inputs import RunInputs, read_inputs, scan_class_folders
from jaxbooth.runs.prompts import training_captions
from jaxbooth.runs.training_data import CAPTION_BATCH, encode_training_data
from tests.made_up_images import put
from tests.test_caption_variants import TAGGED, TAGS

# What a run makes of a folder


def configure(folder: Path, **sections) -> Config:
    data = {"instance_dir": folder, "instance_prompt": "a sks dog", "resolution": 64} | sections.pop("data", {})
    prior = {"prior": {"method": ["none"]}} if "class_dir" not in data else {}  # unless something else is asked for
    return Config.model_validate(prior | sections | {"data": data})


def read(base, folder: Path, **sections) -> tuple[Config, RunInputs]:
    config = configure(folder, **sections)
    return config, read_inputs(config, add_trainable(base, config))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images: two lines, tags, and no caption."""
    images = tmp_path / "dogs"
    images.mkdir()
    for name in "abc":
        put(images / f"{name}.png", size=(64, 64))
    (images / "a.txt").write_text("sks on grass\n\n  sks, running  \n")
    (images / "b.txt").write_text(TAGGED)
    return images


def test_every_line_and_every_variant_is_encoded_once_and_belongs_to_its_image(base, params, mesh, folder):
    text = {"shuffle_tags": True, "keep_tags": 1, "caption_variants": 4}
    config, found = read(base, folder, text=text)
    photos = TrainingImages(config.resolution, masked=False)
    contact_sheet(config, found, photos)
    [cache] = encode_training_data(config, found, photos, params, [], mesh).caches
    captions = distinct_captions([caption for file in found.images for caption in file.captions], with_empty=False)
    assert cache.caption_counts.tolist() == [4, 4, 4]
    assert [file.captions for file in found.images] == [
        tuple(captions[row] for row in rows[:count])
        for rows, count in zip(cache.caption, cache.caption_counts, strict=True)
    ]
    assert set(found.images[0].captions) == {"sks on grass", "sks, running"}
    assert len(cache.text.prompt_embeds) == len(captions) <= 2 + 4 + 1
    encoded = base.text.encode(params, base.text.tokenize(captions))
    np.testing.assert_allclose(cache.text.prompt_embeds, encoded.prompt_embeds, atol=1e-5)


def test_an_image_without_a_caption_has_the_prompt_alone(base, folder):
    _, found = read(base, folder, text={"shuffle_tags": True})
    assert set(found.images[2].captions) == {"a sks dog"}


def test_variants_are_encoded_ahead_where_the_text_encoder_is_dropped(base, folder):
    config, found = read(base, folder, text={"shuffle_tags": True, "caption_dropout": 0.1})
    captions = training_captions(config, found)
    assert {caption for file in found.images for caption in file.captions} | {""} == set(captions)
    assert len(captions) == len(set(captions))


def test_captions_of_class_images_have_their_lines_but_neither_trigger_word_nor_shuffled_tags(base, folder, tmp_path):
    classes = tmp_path / "class"
    classes.mkdir()
    put(classes / "d.png")
    (classes / "d.txt").write_text("red, blue\nblue, red, green\n")
    data = {"class_dir": classes, "class_prompt": "a dog", "num_class_images": 1}
    text = {"shuffle_tags": True, "tag_dropout": 0.5, "trigger_word": "sks"}
    _, found = read(base, folder, data=data, text=text)
    [scanned] = scan_class_folders((), found.classes)
    assert scanned.images[0].captions == ("red, blue", "blue, red, green")


def test_a_placeholder_token_may_stand_in_any_line(base, folder):
    (folder / "a.txt").write_text("a dog\na <new> dog\n")
    text = {"placeholder_tokens": ("<new>",), "initializer_token": "dog"}
    read(base, folder, text=text)


# Captions without the identifier, for output preservation

DOG = Subject(instance_dir=Path("dogs"), instance_prompt="a photo of sks dog", class_prompt="a photo of dog")
PRESERVING = {"method": ["output-preservation"]}


def class_captions(*captions: str, shared: str | None = None, **text) -> list[tuple[str, str]]:
    """What an image with these captions is trained with, each with its class caption."""
    settings = TextConfig(**text)
    file = with_variants(ImageFile(Path("a.png"), captions[0], 0, captions), settings, seed=0)
    file = with_class_captions(file, DOG, settings, shared)
    return list(zip(file.captions, file.class_captions, strict=True))


def test_the_class_caption_of_a_variant_is_that_variant_without_the_identifier():
    pairs = class_captions("sks dog, red, blue", shuffle_tags=True)
    assert {caption.replace("sks dog", "dog") for caption, _ in pairs} == {other for _, other in pairs}
    assert all(caption.replace("sks dog", "dog") == other for caption, other in pairs)


def test_a_trigger_word_counts_as_the_identifier():
    assert class_captions("a red dog", "a sks dog", trigger_word="sks") == [
        ("sks, a red dog", "a red dog"),
        ("a sks dog", "a dog"),
    ]
    ohwx = DOG.model_copy(update={"instance_prompt": "a photo of ohwx dog person", "class_prompt": "a dog"})
    assert trigger_words(TextConfig(trigger_word="ohwx dog"), ohwx) == ["ohwx"]


def test_a_variant_that_lost_the_identifier_is_its_own_class_caption():
    pairs = class_captions("sks dog, red, blue", tag_dropout=0.6, caption_variants=64)
    assert {other for caption, other in pairs if "sks" not in caption} == {"red", "blue", "red, blue"}
    assert all(caption == other for caption, other in pairs if "sks" not in caption)


def test_a_variant_of_nothing_but_the_identifier_has_the_class_caption_of_the_whole():
    pairs = dict(class_captions("red, blue", tag_dropout=0.7, trigger_word="sks"))
    assert pairs["sks"] == "red, blue"
    assert pairs["sks, red"] == "red"


def test_every_line_has_to_hold_the_identifier():
    with pytest.raises(UserError, match=r"its caption 'a red dog' does not hold sks"):
        class_captions("a sks dog", "a red dog")
    assert class_captions("a sks dog", "a red dog", shared="a dog") == [("a sks dog", "a dog"), ("a red dog", "a dog")]


def test_class_captions_are_encoded_beside_the_variants(base, params, mesh, folder):
    (folder / "a.txt").write_text("sks on grass\nsks running")
    config, found = read(
        base, folder, prior=PRESERVING, text={"shuffle_tags": True, "caption_variants": 4}, data={"class_prompt": "dog"}
    )
    photos = TrainingImages(config.resolution, masked=False)
    contact_sheet(config, found, photos)
    [cache] = encode_training_data(config, found, photos, params, [], mesh).caches
    captions = distinct_captions([prompt for file in found.images for prompt in file.prompts], with_empty=False)
    assert [captions[row] for row in cache.class_caption[0]] == ["on grass", "running"] * 2
    assert all("sks" not in captions[row] for row in cache.class_caption.ravel())
    assert set(training_captions(config, found)) == set(captions)


# What is said of it


def said(base, folder: Path, capsys, **text) -> str:
    config, found = read(base, folder, text=text)
    capsys.readouterr()
    log_captions(config, base.text.encoders[0].tokenizer, [images.images for images in found.instances])
    return " ".join(capsys.readouterr().out.split())


def test_several_captions_are_counted(base, folder, capsys):
    assert said(base, folder, capsys) == "captions: 4 for 3 images; each row takes one of its image's"
    (folder / "a.txt").unlink()
    assert said(base, folder, capsys) == ""


def test_variants_are_counted_and_one_is_shown(base, folder, capsys):
    (folder / "a.txt").unlink()
    output = said(base, folder, capsys, shuffle_tags=True, caption_variants=5)
    assert output.startswith("captions: 7 variants for 3 images, at most 5 each (--text.caption-variants), such as '")
    shown = output.split("such as ")[1].strip("'")
    assert sorted(split_tags(shown)) == sorted(TAGS)
    assert shown != TAGGED


def test_tags_that_are_not_there_are_warned_of(base, folder, capsys):
    (folder / "a.txt").unlink()
    (folder / "b.txt").unlink()
    assert "warning: no instance caption has tags" in said(base, folder, capsys, shuffle_tags=True)


def test_a_dropped_identifier_is_warned_of_with_what_keeps_it(base, folder, capsys):
    (folder / "a.txt").unlink()
    output = said(base, folder, capsys, tag_dropout=0.5)
    assert "of 48 captions lose 'sks' to --text.tag-dropout; --text.keep-tags 1 keeps the first tag" in output
    assert "lose" not in said(base, folder, capsys, tag_dropout=0.5, keep_tags=1)
    assert "lose" not in said(base, folder, capsys, tag_dropout=0.5, trigger_word="sks")


def test_ai_toolkits_placeholder_is_named_without_a_trigger_word(base, folder, capsys):
    (folder / "a.txt").write_text("a [trigger] dog")
    assert "--text.trigger-word WORD would replace" in said(base, folder, capsys)
    assert "[trigger]" not in said(base, folder, capsys, trigger_word="sks")


def test_the_contact_sheet_tells_how_many_variants_a_caption_has():
    assert caption_label(ImageFile(Path("a.png"), "a dog", 0, ("a dog",))) == "a dog"
    assert caption_label(ImageFile(Path("a.png"), "a, b", 0, ("a, b", "b, a", "a, b"))) == "a, b (2 variants)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({}, None),
        ({"shuffle_tags": True}, "tags shuffled"),
        ({"tag_dropout": 0.1, "keep_tags": 1}, "tags 10% left out, but the first 1"),
        ({"shuffle_tags": True, "tag_dropout": 0.25}, "tags shuffled and 25% left out"),
    ],
)
def test_a_model_card_says_what_was_done_to_the_tags(text, expected):
    assert describe_tags(TextConfig(**text)) == expected


def test_many_captions_are_encoded_a_few_at_a_time(base, params):
    captions = [f"a dog, {number}" for number in range(CAPTION_BATCH + 3)]
    encoders, ids = {"text_encoder": params["text_encoder"]}, base.text.tokenize(captions)
    sizes = []

    def encode(params, ids):
        sizes.append(len(ids["text_encoder"]))
        return base.text.encode(params, ids)

    text = encode_batches(encode, encoders, ids, CAPTION_BATCH)
    assert sizes == [CAPTION_BATCH, CAPTION_BATCH]
    assert len(text.prompt_embeds) == len(captions)
    alone = base.text.encode(encoders, {"text_encoder": ids["text_encoder"][-1:]})
    np.testing.assert_allclose(text.prompt_embeds[-1:], alone.prompt_embeds, atol=1e-5)
