"""The prompts of an evaluation: the DreamBooth paper's or the user's own for the subject, and the class prompts.

The templates are those of the paper's dataset (github.com/google/dreambooth, `prompts_and_classes.txt`, CC BY 4.0).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxbooth.config.limits import MAX_PROMPT, MAX_PROMPTS
from jaxbooth.config.schema import Subject
from jaxbooth.config.subjects import SubjectName, name_subject
from jaxbooth.errors import UserError
from jaxbooth.storage.text import read_lines

MAX_PROMPTS_BYTES = 2**20
GAP = "{}"  # where the subject goes
SCENES = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} on a cobblestone street",
    "a {} on top of pink fabric",
    "a {} on top of a wooden floor",
    "a {} with a city in the background",
    "a {} with a mountain in the background",
    "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)
PROPERTIES = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")
OBJECT_TEMPLATES = (
    *SCENES,
    "a {} with a wheat field in the background",
    "a {} with a tree and autumn leaves in the background",
    "a {} with the Eiffel Tower in the background",
    "a {} floating on top of water",
    "a {} floating in an ocean of milk",
    "a {} on top of green grass with sunflowers around it",
    "a {} on top of a mirror",
    "a {} on top of the sidewalk in a crowded street",
    "a {} on top of a dirt road",
    "a {} on top of a white rug",
    *PROPERTIES,
)
LIVE_TEMPLATES = (
    *SCENES,
    "a {} wearing a red hat",
    "a {} wearing a santa hat",
    "a {} wearing a rainbow scarf",
    "a {} wearing a black top hat and a monocle",
    "a {} in a chef outfit",
    "a {} in a firefighter outfit",
    "a {} in a police outfit",
    "a {} wearing pink glasses",
    "a {} wearing a yellow shirt",
    "a {} in a purple wizard outfit",
    *PROPERTIES,
)
TEMPLATES = {"object": OBJECT_TEMPLATES, "live": LIVE_TEMPLATES}
# The paper's live subjects are cats and dogs; these are what else people train.
LIVE_NOUNS = frozenset(
    ("animal", "baby", "bear", "bird", "boy", "cat", "child", "cow", "dog", "face", "fox", "girl", "hamster", "horse",
     "kitten", "lion", "man", "monkey", "panda", "parrot", "person", "pig", "puppy", "rabbit", "sheep", "squirrel",
     "tiger", "wolf", "woman")
)  # fmt: skip


class EvalPrompt(NamedTuple):
    """One prompt of an evaluation.

    Attributes:
        text: the prompt that images are generated from.
        caption: the text that they are compared with: the prompt without the identifier, which means nothing to CLIP.
        group: whether it shows the subject or the bare class.
        subject: index of the subject in the run.
    """

    text: str
    caption: str
    group: Literal["subject", "class"]
    subject: int


class Cell(NamedTuple):
    """One image of an evaluation.

    Attributes:
        prompt: index of its prompt.
        image: index among the prompt's images; with the seed it decides the noise.
    """

    prompt: int
    image: int


def template_set(noun: str) -> str:
    """Returns which of the paper's two lists suits a class: that for live subjects, or that for objects."""
    return "live" if any(word.lower() in LIVE_NOUNS for word in noun.split()) else "object"


def read_templates(path: Path) -> tuple[str, ...]:
    """Reads a file of prompts, one a line; empty lines and lines that start with # are left out.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    try:
        lines = [line.strip() for line in read_lines(path, MAX_PROMPTS_BYTES)]
    except UserError as error:
        reason = str(error).removeprefix(f"{path} ").rstrip(".")
        raise UserError(f"--prompts {path} cannot be read ({reason}); name a text file, live or object.") from None
    templates = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if len(templates) > MAX_PROMPTS:
        raise UserError(f"--prompts {path} holds {len(templates)} prompts, and {MAX_PROMPTS} is the most; split it.")
    if not templates:
        raise UserError(f"--prompts {path} holds no prompt; write one a line, with {GAP} where the subject goes.")
    if any(len(template) > MAX_PROMPT for template in templates):
        raise UserError(f"--prompts {path} holds a line of more than {MAX_PROMPT:,} characters; shorten it.")
    return templates


def subject_prompts(templates: Sequence[str], name: SubjectName, subject: int) -> list[EvalPrompt]:
    """Fills templates with a subject's name; one without `{}` is a prompt already, and its caption lacks the name."""
    prompts = []
    for template in templates:
        text = template.replace(GAP, name.phrase)
        caption = template.replace(GAP, name.noun).replace(name.phrase, name.noun)
        prompts.append(EvalPrompt(text, caption, "subject", subject))
    return prompts


def class_prompts(subjects: Sequence[Subject]) -> list[EvalPrompt]:
    """Returns the class prompts; the images of a class are compared with each of its subjects."""
    return [
        EvalPrompt(subject.class_prompt, subject.class_prompt, "class", index)
        for index, subject in enumerate(subjects)
        if subject.class_prompt
    ]


def few_prompts(subjects: Sequence[Subject], num_prompts: int) -> list[EvalPrompt]:
    """Returns a few of the paper's prompts for each subject, evenly spread over its list, and the class prompts."""
    prompts = []
    for index, subject in enumerate(subjects):
        name = name_subject(subject)
        templates = TEMPLATES[template_set(name.noun)]
        spread = np.linspace(0, len(templates) - 1, min(num_prompts, len(templates)))
        prompts += subject_prompts([templates[round(position)] for position in spread], name, index)
    return prompts + class_prompts(subjects)


def prompts_without_subject(prompts: Sequence[EvalPrompt], names: Sequence[SubjectName]) -> list[str]:
    """Returns the subject prompts that do not hold their subject's identifier."""
    return [
        prompt.text
        for prompt in prompts
        if prompt.group == "subject" and not set(names[prompt.subject].identifier) & set(prompt.text.split())
    ]


def cells(prompts: Sequence[EvalPrompt], images_per_prompt: int, num_class_images: int) -> list[Cell]:
    """Returns every image of an evaluation: `images_per_prompt` of a subject prompt, `num_class_images` of a class."""
    return [
        Cell(prompt_index, image_index)
        for prompt_index, prompt in enumerate(prompts)
        for image_index in range(images_per_prompt if prompt.group == "subject" else num_class_images)
    ]


def by_prompt(images: Sequence[np.ndarray], wanted: Sequence[Cell], num_prompts: int) -> list[list[np.ndarray]]:
    """Groups images by their prompt.

    Args:
        images: one for each cell.
    """
    groups: list[list[np.ndarray]] = [[] for _ in range(num_prompts)]
    for image, cell in zip(images, wanted, strict=True):
        groups[cell.prompt].append(image)
    return groups
