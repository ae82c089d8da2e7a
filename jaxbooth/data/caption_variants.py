"""Captions as they are trained with: the trigger word put in, the tags between their commas shuffled and dropped.

The variants of a run are made before it begins, and encoded like any other caption; each row of a step takes one. So
there are as many encodings as `text.caption_variants` allows, however long the run is. kohya's `shuffle_caption`,
`keep_tokens` and `caption_tag_dropout_rate` do the same to the caption of each row (`library/train_util.py`,
`process_caption`).
"""

from collections.abc import Sequence

import numpy as np

from jaxbooth.config.caption_rules import has_word
from jaxbooth.config.schema import TextConfig
from jaxbooth.data.images import ImageFile
from jaxbooth.prng import host_generator

CAPTION_STREAM = 1  # of an image's generators; 0 is that of its crops
PLACEHOLDER = "[trigger]"  # ai-toolkit's


def add_trigger_word(caption: str, word: str) -> str:
    """Returns a caption that holds a word: in the place of `[trigger]`, else in front as a tag where it lacks it."""
    caption = caption.replace(PLACEHOLDER, word)
    return caption if has_word(caption, word) else f"{word}, {caption}"


def split_tags(caption: str) -> list[str]:
    """Returns what stands between the commas of a caption."""
    return [tag for part in caption.split(",") if (tag := part.strip())]


def vary_tags(caption: str, text: TextConfig, generator: np.random.Generator) -> str:
    """Returns a caption with its tags shuffled and dropped, as `text` says; at least one is left.

    The first `keep_tags` stay, and so does the trigger word where it is the first tag. Where it was dropped as a part
    of another tag, it is put in front.
    """
    tags = split_tags(caption)
    starts_with_trigger = bool(text.trigger_word) and tags[:1] == [text.trigger_word]
    kept = max(text.keep_tags, int(starts_with_trigger))
    first, rest = tags[:kept], tags[kept:]
    left = [tag for tag, value in zip(rest, generator.random(len(rest)), strict=True) if value >= text.tag_dropout]
    if not first and not left and rest:
        left = [rest[generator.integers(len(rest))]]
    if text.shuffle_tags:
        left = [left[position] for position in generator.permutation(len(left))]
    varied = ", ".join([*first, *left]) or caption
    return add_trigger_word(varied, text.trigger_word) if text.trigger_word else varied


def with_variants(file: ImageFile, text: TextConfig, seed: int) -> ImageFile:
    """Returns an image with the trigger word in its captions, and with the variants that it is trained with."""
    captions = file.captions
    if not text.trigger_word and not text.varies_tags:
        return file
    if text.trigger_word:
        captions = tuple(add_trigger_word(caption, text.trigger_word) for caption in captions)
    variants = make_variants(captions, file.index, text, seed) if text.varies_tags else captions
    return file._replace(caption=captions[0], variants=variants)


def make_variants(captions: Sequence[str], index: int, text: TextConfig, seed: int) -> tuple[str, ...]:
    """Returns captions with shuffled and dropped tags.

    A pure function of its arguments. Each caption has equally many variants, at least one, and all
    together have at most `text.caption_variants`, or as many as there are captions. Equal ones are kept, so that each
    is met as often as chance has it.

    Args:
        captions: of the image, at least one, each with the trigger word.
        index: of the image in its folder.
        seed: of the run.
    """
    generator = host_generator(seed, index, CAPTION_STREAM)
    rounds = max(1, text.caption_variants // len(captions))
    return tuple(vary_tags(caption, text, generator) for _ in range(rounds) for caption in captions)
