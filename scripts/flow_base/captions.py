"""How often each emoji image comes in training, and what is said of it."""

import random
from typing import Any

from encode import COLOR_NAMES

NOUNS = {
    "Animals & Nature": "animal",
    "Food & Drink": "food",
    "Smileys & Emotion": "face",
    "People & Body": "person",
    "Travel & Places": "place",
    "Activities": "activity",
    "Objects": "object",
    "Symbols": "symbol",
}
FREQUENCIES = {
    "Animals & Nature": 3.0,
    "Smileys & Emotion": 3.0,
    "Food & Drink": 2.0,
    "People & Body": 0.3,
    "Travel & Places": 0.4,
    "Activities": 0.4,
    "Objects": 0.4,
    "Symbols": 0.1,
}
CAT_FREQUENCY = 12.0
MONKEY_FREQUENCY = 6.0
PLAIN_FORMS = ["an emoji of a {}", "an emoji of a {}", "a {}", "a {} emoji", "{}"]
STYLED_FORMS = ["a {style} emoji of a {}", "a {style} emoji of a {}", "a {style} {}", "a {style} {} emoji", "{}"]


def is_cat(row: dict[str, Any]) -> bool:
    """Tells whether an image shows a house cat, whole or its face."""
    return "cat" in row["label"].split()


def frequency(row: dict[str, Any]) -> float:
    """Returns how often an image comes, relative to others."""
    if is_cat(row):
        return CAT_FREQUENCY
    if "monkey" in row["label"].split() or "cat" in row["tags"]:
        return MONKEY_FREQUENCY
    return FREQUENCIES[row["category"]]


def random_subject(row: dict[str, Any]) -> str:
    """Names what an image shows: mostly by its label."""
    label = row["label"]
    tags = row["tags"] or [label]
    if is_cat(row) and random.random() < 0.25:
        return "cat"
    choice = random.random()
    if choice < 0.7:
        return label
    if choice < 0.88:
        return random.choice(tags)
    if choice < 0.93:
        return f"{label} {NOUNS[row['category']]}"
    return " ".join(random.sample(tags, min(2, len(tags))))


def random_caption(row: dict[str, Any], color: int) -> str:
    """Returns one of an image's captions; a background that is not white is always told."""
    if random.random() < 0.1:
        return ""
    forms = STYLED_FORMS if random.random() < 0.4 else PLAIN_FORMS
    caption = random.choice(forms).format(random_subject(row), style=row["style"])
    if color != 0 or random.random() < 0.35:
        caption += f" on a {COLOR_NAMES[color]} background"
    return caption
