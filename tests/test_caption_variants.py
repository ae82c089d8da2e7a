"""Captions as people write them: several of an image, shuffled and dropped tags, a trigger word; which a row takes."""

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.base.encoded_prompts import encode_batches
from jaxbooth.base.trainable import add_trainable
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject, TextConfig
from jaxbooth.data.caption_variants import add_trigger_word, make_variants, split_tags, with_variants
from jaxbooth.data.class_captions import trigger_words, with_class_captions
from jaxbooth.data.images import ImageFile
from jaxbooth.data.latents import distinct_captions
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.errors import UserError
from jaxbooth.export.metadata import describe_tags
from jaxbooth.prng import key_data
from jaxbooth.runs.caption_notes import log_captions
from jaxbooth.runs.contact_sheet import caption_label, contact_sheet
from jaxbooth.runs.inputs import RunInputs, read_inputs, scan_class_folders
from jaxbooth.runs.prompts import training_captions
from jaxbooth.runs.training_data import CAPTION_BATCH, caption_tables, encode_training_data
from jaxbooth.training.batch import make_batch
from jaxbooth.training.layout import BatchLayout
from jaxbooth.training.step import make_dispatch
from tests.made_up_images import put
from tests.training import INSTANCES, PRIORS, Setup, first_micro_batch, setup

TAGGED = "sks dog, red sofa, smiling, outdoors, from above, blurry"
TAGS = split_tags(TAGGED)


def variants(captions=(TAGGED,), index=0, seed=0, **text) -> tuple[str, ...]:
    return make_variants(captions, index, TextConfig(**text), seed)


def with_trigger(*captions: str, word: str = "sks", **text) -> ImageFile:
    """An image whose captions were given the word."""
    file = ImageFile(Path("a.png"), captions[0], 3, captions)
    return with_variants(file, TextConfig(trigger_word=word, **text), seed=0)


# Shuffled tags


def test_a_shuffled_caption_has_the_same_tags_in_another_order():
    shuffled = variants(shuffle_tags=True)
    assert [sorted(split_tags(caption)) for caption in shuffled] == [sorted(TAGS)] * 16
    assert len(set(shuffled)) == 16


def test_each_tag_comes_first_about_as_often():
    shuffled = variants(shuffle_tags=True, caption_variants=960)
    firsts = Counter(split_tags(caption)[0] for caption in shuffled)
    assert sorted(firsts) == sorted(TAGS)
    assert all(120 < times < 200 for times in firsts.values())  # 160 are expected


@pytest.mark.parametrize("kept", [1, 3, 6, 100])
def test_the_first_tags_stay_in_their_place(kept):
    for caption in variants(shuffle_tags=True, tag_dropout=0.5, keep_tags=kept):
        assert split_tags(caption)[:kept] == TAGS[:kept]


def test_a_caption_without_commas_stays_what_it_is():
    sentence = "a photo of sks dog on a red sofa"
    assert set(variants((sentence,), shuffle_tags=True, tag_dropout=0.9)) == {sentence}
    assert set(variants((" , ,,",), shuffle_tags=True, tag_dropout=0.9)) == {" , ,,"}


# Dropped tags


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_the_share_of_tags_that_is_dropped_is_the_one_that_was_asked_for(dropout):
    kept = [len(split_tags(caption)) for caption in variants(tag_dropout=dropout, keep_tags=1, caption_variants=1000)]
    assert np.mean(kept) == pytest.approx(1 + 5 * (1 - dropout), abs=0.1)  # 5 standard errors at 0.5


def test_what_is_left_keeps_its_order_without_shuffling():
    for caption in variants(tag_dropout=0.5, caption_variants=100):
        positions = [TAGS.index(tag) for tag in split_tags(caption)]
        assert positions == sorted(positions)


def test_one_tag_is_always_left():
    left = [split_tags(caption) for caption in variants(tag_dropout=0.99, caption_variants=500)]
    assert min(map(len, left)) == 1
    assert {tag for tags in left for tag in tags} == set(TAGS)  # whichever it is


# A function of the seed, the image and the number of the variant, of a bounded number


def test_variants_depend_on_the_seed_and_the_image_alone():
    asked = {"shuffle_tags": True, "tag_dropout": 0.3}
    assert variants(seed=7, index=2, **asked) == variants(seed=7, index=2, **asked)
    others = {variants(seed=seed, index=index, **asked) for seed in (7, 8, 7 + 2**40) for index in (0, 1, 2)}
    assert len(others) == 9


def test_more_variants_leave_the_first_ones_as_they_are():
    few, many = (variants(shuffle_tags=True, tag_dropout=0.3, caption_variants=count) for count in (5, 50))
    assert many[:5] == few


@pytest.mark.parametrize(("lines", "bound", "expected"), [(1, 16, 16), (3, 16, 15), (16, 16, 16), (20, 16, 20)])
def test_all_variants_of_an_image_are_at_most_the_bound_or_its_captions(lines, bound, expected):
    captions = [f"{line}, a, b, c, d" for line in range(lines)]
    made = variants(captions, shuffle_tags=True, keep_tags=1, caption_variants=bound)
    assert len(made) == expected
    times = Counter(split_tags(caption)[0] for caption in made)
    assert set(times.values()) == {expected // lines}
    assert len(times) == lines


# The trigger word


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red dog", "sks, a red dog"),
        ("a sks dog", "a sks dog"),
        ("Sks, a dog", "Sks, a dog"),
        ("a dog (sks)", "a dog (sks)"),
        ("sksy dog", "sks, sksy dog"),
        ("a [trigger] dog", "a sks dog"),
    ],
)
def test_the_trigger_word_is_put_in_front_where_it_is_missing_and_never_twice(caption, expected):
    assert add_trigger_word(caption, "sks") == expected
    assert add_trigger_word(expected, "sks") == expected
    file = with_trigger(caption)
    assert (file.caption, file.captions) == (expected, (expected,))


def test_a_trigger_word_may_be_any_characters():
    assert add_trigger_word("a c dog", "c++") == "c++, a c dog"
    assert add_trigger_word("<sks> dog", "<sks>") == "<sks> dog"


def test_no_variant_is_without_the_trigger_word_and_none_has_it_twice():
    file = with_trigger("red, blue, green", "a sks dog, red, blue", shuffle_tags=True, tag_dropout=0.6)
    assert file.caption == "sks, red, blue, green"
    assert len(file.captions) == 16
    for caption in file.captions:
        assert caption.split(", ").count("sks") + caption.count("sks dog") == 1
    put_in = file.captions[::2]
    assert all(split_tags(caption)[0] == "sks" for caption in put_in)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    caption=st.text(st.characters(categories=["L", "P", "Z"]), min_size=1, max_size=30),
    dropout=st.floats(0, 0.999),
    kept=st.integers(0, 4),
)
def test_whatever_the_caption_is_its_variants_hold_text(caption, dropout, kept):
    made = variants((caption,), shuffle_tags=True, tag_dropout=dropout, keep_tags=kept)
    assert all(split_tags(text) or text == caption for text in made)
    assert all(set(split_tags(text)) <= set(split_tags(caption)) for text in made)


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


def test_rows_of_output_preservation_have_the_class_caption_of_their_instance_rows_variant(micro, micro_params, mesh):
    made = setup(micro, micro_params, mesh, (3, 3), prior=PRESERVING)
    rows = jnp.array([[0, 1, 0], [1, 0, 0], [0, 1, 0], *[[2, 0, 0]] * PRIORS], jnp.int32)
    cache = made.source.cache._replace(
        caption=rows, class_caption=rows + 2, caption_counts=jnp.array([3, 2, 2, *[1] * PRIORS], jnp.int32)
    )
    made = made._replace(source=made.source._replace(cache=cache))
    seen = set()
    for batch in batches(made, range(12)):
        instance = np.asarray(batch.caption)[:3].tolist()
        assert np.asarray(batch.caption)[3:].tolist() == [row + 2 for row in instance]
        seen |= set(instance)
    assert seen == {0, 1}


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


# Which of its image's captions a row takes


def several_captions(made: Setup) -> Setup:
    """The same images with captions: two, one and three of the three instance images, one of each class image."""
    rows = np.zeros((INSTANCES + PRIORS, 3), np.int32)
    rows[:INSTANCES] = [[0, 1, -1], [1, -1, -1], [0, 1, 2]]
    rows[INSTANCES:] = [2, -1, -1]
    counts = np.array([2, 1, 3, *[1] * PRIORS], np.int32)
    cache = made.source.cache._replace(caption=jnp.asarray(rows), caption_counts=jnp.asarray(counts))
    return made._replace(source=made.source._replace(cache=cache))


@pytest.fixture(scope="module")
def made(micro, micro_params, mesh) -> Setup:
    return several_captions(setup(micro, micro_params, mesh, (6, 2)))


def batches(made: Setup, steps: range, layout: BatchLayout | None = None, seed: int = 7):
    """The batch of each step."""
    make = jax.jit(lambda step, layout, key: make_batch(made.spec, made.source, key, step, layout))
    layout = layout or first_micro_batch(made.spec)
    return [make(jnp.int32(step), layout, key_data(seed)) for step in steps]


def test_all_captions_of_an_image_are_met_and_padding_never_is(made):
    captions = np.concatenate([batch.caption for batch in batches(made, range(300))])
    times = Counter(captions.tolist())
    assert set(times) == {0, 1, 2}
    # Of six instance rows, two show each image: 1/2 + 0 + 1/3 of two rows have the first caption.
    assert times[0] / 300 == pytest.approx(2 * (1 / 2 + 1 / 3), abs=0.2)
    assert times[1] / 300 == pytest.approx(2 * (1 / 2 + 1 + 1 / 3), abs=0.2)


def test_the_choice_is_a_function_of_seed_step_and_row(made):
    layout = first_micro_batch(made.spec)
    whole = [batch.caption.tolist() for batch in batches(made, range(8))]
    assert whole == [batch.caption.tolist() for batch in batches(made, range(8))]
    backwards = BatchLayout(*(field[::-1] for field in layout))
    assert whole == [batch.caption.tolist()[::-1] for batch in batches(made, range(8), backwards)]
    assert whole != [batch.caption.tolist() for batch in batches(made, range(8), seed=8)]
    assert len({tuple(captions) for captions in whole}) > 4


def test_several_captions_change_neither_image_nor_noise_nor_timestep(made, micro, micro_params, mesh):
    one = setup(micro, micro_params, mesh, (6, 2))
    for several, single in zip(batches(made, range(3)), batches(one, range(3)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, several.examples, single.examples)
        np.testing.assert_array_equal(several.input_noise, single.input_noise)


def test_a_table_of_equal_captions_trains_as_one_caption_does(made):
    cache = made.source.cache
    same = jnp.repeat(cache.caption[:, :1], 3, axis=1)
    repeated = made.source._replace(cache=cache._replace(caption=same, caption_counts=jnp.full_like(same[:, 0], 3)))
    single = made.source._replace(cache=cache._replace(caption=same[:, :1]))
    found, expected = (batches(made._replace(source=source), range(2)) for source in (repeated, single))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("trains_text", [False, True])
def test_steps_in_one_dispatch_in_ten_or_after_a_stop_are_the_same(trains_text, micro, micro_params, mesh):
    made = several_captions(setup(micro, micro_params, mesh, (3, 1), text_encoder=trains_text))
    dispatch = make_dispatch(made.spec, 10, made.state)

    def after(counts: list[int]):
        state, losses = jax.tree.map(jnp.copy, made.state), []
        for count in counts:
            state, metrics = dispatch(state, made.frozen, made.source, made.key, np.int32(count))
            losses += metrics["loss"][:count].tolist()
        return losses, state.params

    losses, params = after([10])
    for counts in ([1] * 10, [4, 6]):
        other_losses, other_params = after(counts)
        assert losses == other_losses
        jax.tree.map(np.testing.assert_array_equal, params, other_params)


def test_rows_of_the_text_are_padded_to_the_most_captions():
    files = [ImageFile(Path("a"), "x", 0, ("x", "y", "x")), ImageFile(Path("b"), "z", 1)]
    caption, counts, class_caption = caption_tables(files, ["z", "y", "x"])
    assert caption.tolist() == [[2, 1, 2], [0, 0, 0]]
    assert counts.tolist() == [3, 1]
    assert class_caption is None
