"""The five metrics of the DreamBooth paper (Ruiz et al. 2023, sections 4.1 and 4.3), on unit float32 features.

Everything is a list with one array for each prompt: scores of images are (n,), distances of pairs of images of one
prompt (n, n). Both stay apart until the end, so that an interval can draw prompts and images anew.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxbooth.metrics.prompts import EvalPrompt

Scores = dict[str, list[np.ndarray]]


class MetricDefinition(NamedTuple):
    """What a metric is.

    Attributes:
        title: as the paper calls it.
        what: what it measures, in two words.
        better: "higher" or "lower".
        group: images that it is computed on, "subject" or "class".
        features: extractor; None: DINO where there is one, else CLIP.
        text: how it is computed, with a gap for the extractor.
    """

    title: str
    what: str
    better: Literal["higher", "lower"]
    group: Literal["subject", "class"]
    features: Literal["dino", "clip"] | None
    text: str

    def facts(self, has_dino: bool) -> dict[str, str]:
        """Returns what a reader needs to know, for JSON."""
        features = self.features or ("dino" if has_dino else "clip")
        words = {"title": self.title.format(features.upper()), "features": features}
        return self._asdict() | words | {"text": self.text.format(features.upper())}


class ImageFeatures(NamedTuple):
    """Unit features by one extractor.

    Attributes:
        images: (n, d) of each prompt's images.
        references: (r, d) of each subject's training images.
    """

    images: list[np.ndarray]
    references: list[np.ndarray]


TO_REFERENCES = "mean cosine similarity of {} features of images of the subject to its training images"
DEFINITIONS = {
    "dino": MetricDefinition("DINO", "subject fidelity", "higher", "subject", "dino", TO_REFERENCES),
    "clip_i": MetricDefinition("CLIP-I", "subject fidelity", "higher", "subject", "clip", TO_REFERENCES),
    "clip_t": MetricDefinition(
        "CLIP-T", "prompt fidelity", "higher", "subject", "clip",
        "mean cosine similarity of {} features of an image and its prompt without the identifier",
    ),
    "pres": MetricDefinition(
        "PRES", "prior preservation", "lower", "class", None,
        "mean cosine similarity of {} features of images of the bare class to the subject's training images",
    ),
    "div": MetricDefinition(
        "DIV ({} distance)", "class diversity", "higher", "class", None,
        "mean cosine distance of {} features between images of the bare class",
    ),
    "div_subject": MetricDefinition(
        "subject DIV ({} distance)", "subject diversity", "higher", "subject", None,
        "mean cosine distance of {} features between images of the subject under one prompt",
    ),
}  # fmt: skip


def similarities(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Returns each image's mean cosine similarity to the references; (n, d), (r, d) -> (n,)."""
    return (images @ references.T).mean(axis=1)


def distances(images: np.ndarray) -> np.ndarray:
    """Returns 1 - cosine similarity of all pairs; (n, d) -> (n, n)."""
    return 1 - images @ images.T


def compute_scores(
    entries: Sequence[EvalPrompt], clip: ImageFeatures | None, captions: np.ndarray | None, dino: ImageFeatures | None
) -> Scores:
    """Computes every metric that the extractors at hand and the prompts allow.

    Args:
        captions: (entries, d) CLIP features of the captions.
    """
    wanted = {group: [i for i, entry in enumerate(entries) if entry.group == group] for group in ("subject", "class")}
    best = dino or clip
    found: Scores = {}

    def to_references(embedded: ImageFeatures, group: str) -> list[np.ndarray]:
        references = [embedded.references[entries[i].subject] for i in wanted[group]]
        return [similarities(embedded.images[i], r) for i, r in zip(wanted[group], references, strict=True)]

    if dino:
        found["dino"] = to_references(dino, "subject")
    if clip:
        assert captions is not None
        found["clip_i"] = to_references(clip, "subject")
        found["clip_t"] = [clip.images[i] @ captions[i] for i in wanted["subject"]]
    if best:
        found["pres"] = to_references(best, "class")
        found["div"] = [distances(best.images[i]) for i in wanted["class"]]
        found["div_subject"] = [distances(best.images[i]) for i in wanted["subject"]]
    # One image has no other to differ from.
    return {name: each for name, each in found.items() if each and (each[0].ndim == 1 or len(each[0]) > 1)}
