"""What an evaluation draws: the subject under the DreamBooth paper's prompts or the user's own, and the bare class.

The templates are those of the paper's dataset (github.com/google/dreambooth, `prompts_and_classes.txt`, CC BY 4.0).
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from jaxbooth.config.limits import MAX_PROMPT, MAX_PROMPTS
from jaxbooth.config.schema import Subject
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
ARTICLES = ("a", "an", "the", "my", "our")


class SubjectName(NamedTuple):
    """What a subject is called.

    Attributes:
        phrase: with its identifier, "sks dog".
        noun: its class, "dog".
    """

    phrase: str
    noun: str


class EvalPrompt(NamedTuple):
    """One prompt of an evaluation.

    Attributes:
        prompt: what is drawn.
        caption: what images are compared with: the prompt without the identifier, which means nothing to CLIP.
        group: whether it shows the subject or the bare class.
        subject: its number in the run.
    """

    prompt: str
    caption: str
    group: Literal["subject", "class"]
    subject: int


def noun_phrase(prompt: str) -> str:
    """Returns what a prompt is an image of: what follows its last "of" up to a comma, without an article."""
    words = prompt.split()
    if "of" in words:
        words = words[len(words) - words[::-1].index("of") :]
    words = re.split(r"[,;:]", " ".join(words))[0].rstrip(" .!?").split()
    return " ".join(words[1:] if words and words[0].lower() in ARTICLES else words)


def name_subject(subject: Subject, phrase: str | None = None, noun: str | None = None) -> SubjectName:
    """Reads a subject's name and class off its prompts.

    Args:
        phrase, noun: what the user says instead.
    """
    phrase = phrase or noun_phrase(subject.instance_prompt)
    if not noun:
        noun = noun_phrase(subject.class_prompt) if subject.class_prompt else " ".join(phrase.split()[1:])
    return SubjectName(phrase, noun or phrase)


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


def subject_prompts(templates: Sequence[str], named: SubjectName, subject: int) -> list[EvalPrompt]:
    """Fills templates; one without a gap is a prompt as it stands, whose identifier is found in it."""
    return [
        EvalPrompt(
            template.replace(GAP, named.phrase),
            template.replace(GAP, named.noun).replace(named.phrase, named.noun),
            "subject",
            subject,
        )
        for template in templates
    ]


def class_prompts(subjects: Sequence[Subject]) -> list[EvalPrompt]:
    """Returns the class prompts; the images of a class are compared with each of its subjects."""
    return [
        EvalPrompt(subject.class_prompt, subject.class_prompt, "class", number)
        for number, subject in enumerate(subjects)
        if subject.class_prompt
    ]


def prompts_without_subject(entries: Sequence[EvalPrompt], names: Sequence[SubjectName]) -> list[str]:
    """Returns the subject prompts that do not hold their subject's identifier."""
    return [
        entry.prompt
        for entry in entries
        if entry.group == "subject" and not set(identifier(names[entry.subject])) & set(entry.prompt.split())
    ]


def identifier(named: SubjectName) -> list[str]:
    """Returns the words that the subject's name has and its class lacks."""
    return [word for word in named.phrase.split() if word not in named.noun.split()]
