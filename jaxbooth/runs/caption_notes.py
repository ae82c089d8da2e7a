"""What a run says of its captions when it starts: how many there are, one that was made, and what they lack."""

from collections.abc import Sequence

from jaxbooth.base.identifier import AnyTokenizer, find_identifier, prompt_words
from jaxbooth.config.caption_rules import has_word
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import Subject, TextConfig
from jaxbooth.console.messages import info, pluralize, warn
from jaxbooth.data.caption_variants import PLACEHOLDER
from jaxbooth.data.images import ImageFile
from jaxbooth.errors import short_repr


def log_captions(config: Config, tokenizer: AnyTokenizer, folders: Sequence[Sequence[ImageFile]]) -> None:
    """Says how many captions the images have where that is more than one each, and warns of what they lack.

    Args:
        folders: images of each subject.
    """
    text, files = config.text, [file for images in folders for file in images]
    log_counts(text, files)
    if text.trigger_word is None and any(PLACEHOLDER in caption for file in files for caption in file.captions):
        warn(f"captions hold {PLACEHOLDER}, which --text.trigger-word WORD would replace.")
    if text.tag_dropout:
        for subject, images in zip(config.subjects, folders, strict=True):
            warn_about_lost_words(tokenizer, text, subject, images)


def log_counts(text: TextConfig, files: Sequence[ImageFile]) -> None:
    """Says how many different captions there are, and shows one whose tags were shuffled or dropped."""
    total, images = sum(len(set(file.captions)) for file in files), pluralize(len(files), "image")
    if text.varies_tags:
        if not any(len(set(file.captions)) > 1 for file in files):
            warn("no instance caption has tags, parts between commas, that can be shuffled or left out.")
            return
        example = next(caption for file in files for caption in file.captions if caption != file.caption)
        most = max(len(file.captions) for file in files)
        info(
            f"captions: {total} variants for {images}, at most {most} each (--text.caption-variants), such as "
            f"{short_repr(example)}"
        )
    elif total > len(files):
        info(f"captions: {total} for {images}; each row takes one of its image's")


def warn_about_lost_words(
    tokenizer: AnyTokenizer, text: TextConfig, subject: Subject, files: Sequence[ImageFile]
) -> None:
    """Warns of variants from which the word that stands for the subject was dropped."""
    class_words = prompt_words(subject.class_prompt or "")
    identifier = find_identifier(tokenizer, prompt_words(subject.instance_prompt), class_words)
    words = [*text.placeholder_tokens, *([identifier.word] if identifier else [])]
    for word in words:
        named = [file.captions for file in files if has_word(file.caption, word)]
        lost = sum(not has_word(caption, word) for captions in named for caption in captions)
        if lost:
            warn(
                f"{lost} of {sum(map(len, named))} captions lose '{word}' to --text.tag-dropout; --text.keep-tags 1 "
                f"keeps the first tag, and --text.trigger-word {word} the word."
            )
