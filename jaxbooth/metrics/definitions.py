"""The five metrics of the DreamBooth paper (Ruiz et al. 2023, sections 4.1 and 4.3), on unit float32 features.

Scores are a list with one array for each prompt: (n,) for its n images, (n, n) for distances between all pairs of them.
Prompts and images stay apart, so that an interval can resample both.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxbooth.metrics.prompts import EvalPrompt

RESULT_FORMAT = 2  # of evaluation.json
Scores = dict[str, list[np.ndarray]]


class MetricDefinition(NamedTuple):
    """What a metric is.

    Attributes:
        title: the paper's name for it, with a gap for the feature model.
        measures: what it measures, in two words.
        better: "higher" or "lower".
        group: images that it is computed on, "subject" or "class".
        features: feature model; None: DINO where there is one, else CLIP.
        text: how it is computed, with a gap for the feature model.
    """

    title: str
    measures: str
    better: Literal["higher", "lower"]
    group: Literal["subject", "class"]
    features: Literal["dino", "clip"] | None
    text: str

    @property
    def short_title(self) -> str:
        """The title without its feature model."""
        return self.title.split(" (")[0]

    def describe(self, has_dino: bool) -> dict[str, str]:
        """Returns all of it for JSON, with the feature model's name in the gaps."""
        features = self.features or ("dino" if has_dino else "clip")
        name = features.upper()
        filled = {"title": self.title.format(name), "features": features, "text": self.text.format(name)}
        return self._asdict() | filled


class ImageFeatures(NamedTuple):
    """Unit features by one feature model.

    Attributes:
        images: (n, d) of each prompt's generated images.
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
    prompts: Sequence[EvalPrompt],
    clip: ImageFeatures | None,
    captions: np.ndarray | None,
    dino: ImageFeatures | None,
) -> Scores:
    """Computes every metric that the feature models at hand and the prompts allow.

    Args:
        captions: (prompts, d) CLIP features of the captions.
    """
    subject_prompts = [index for index, prompt in enumerate(prompts) if prompt.group == "subject"]
    class_prompts = [index for index, prompt in enumerate(prompts) if prompt.group == "class"]
    scores: Scores = {}

    def to_references(features: ImageFeatures, indices: list[int]) -> list[np.ndarray]:
        return [similarities(features.images[i], features.references[prompts[i].subject]) for i in indices]

    if dino:
        scores["dino"] = to_references(dino, subject_prompts)
    if clip:
        assert captions is not None
        scores["clip_i"] = to_references(clip, subject_prompts)
        scores["clip_t"] = [clip.images[i] @ captions[i] for i in subject_prompts]
    features = dino or clip
    if features:
        scores["pres"] = to_references(features, class_prompts)
        scores["div"] = [distances(features.images[i]) for i in class_prompts]
        scores["div_subject"] = [distances(features.images[i]) for i in subject_prompts]
    # A single image has no pair.
    return {name: arrays for name, arrays in scores.items() if arrays and (arrays[0].ndim == 1 or len(arrays[0]) > 1)}
