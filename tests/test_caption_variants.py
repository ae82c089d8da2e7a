"""Captions as people write them: several of an image, shuffled and dropped tags, a trigger word; which a row takes."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxbooth.config.schema import TextConfig
from jaxbooth.data.caption_variants import add_trigger_word, make_variants, split_tags, with_variants
from jaxbooth.data.images import ImageFile

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
