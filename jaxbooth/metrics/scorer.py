"""From images to scores, with whichever extractors there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxbooth.config.run_config import Config
from jaxbooth.console.progress import progress
from jaxbooth.data.crops import Framing, framed
from jaxbooth.data.images import scan
from jaxbooth.errors import UserError
from jaxbooth.metrics.definitions import ImageFeatures, Scores, compute_scores
from jaxbooth.metrics.features import ClipFeatureModel, FeatureModel, load_clip, load_dino
from jaxbooth.metrics.prompts import EvalPrompt

CLIP = "openai/clip-vit-base-patch32"  # the paper's section 4.1 has CLIP ViT-B/32 and DINO ViT-S/16
DINO = "facebook/dino-vits16"
NONE = "none"


@dataclass(frozen=True)
class FeatureModels:
    """What turns images into features; at least one of the two."""

    clip: ClipFeatureModel | None
    dino: FeatureModel | None

    def facts(self) -> dict[str, Any]:
        """Which they are, for JSON."""
        both = {"clip": self.clip, "dino": self.dino}
        return {key: {"name": one.name, "fingerprint": one.fingerprint} if one else None for key, one in both.items()}


def load_feature_models(
    config: Config, clip: str | None, dino: str | None, mesh: Mesh, allow_pickle: bool = False
) -> FeatureModels:
    """Opens CLIP and DINO.

    Args:
        clip, dino: folder or Hub id; "none" leaves one out. By default the paper's, and with the embedded base model
            the embedded CLIP, which knows its images.
        allow_pickle: also read `.bin` files; so does a run that was allowed to.

    Raises:
        UserError: none is left, or one cannot be opened.
    """
    embedded = config.model == "demo"
    clip = clip or ("demo" if embedded else CLIP)
    dino = dino or (NONE if embedded else DINO)
    if clip == dino == NONE:
        raise UserError("--clip and --dino are both none; leave one of them to measure with.")
    pickles, offline = config.allow_pickle or allow_pickle, config.offline
    return FeatureModels(
        None if clip == NONE else load_clip(clip, mesh, offline=offline, allow_pickle=pickles),
        None if dino == NONE else load_dino(dino, mesh, offline=offline, allow_pickle=pickles),
    )


def reference_images(config: Config) -> list[list[np.ndarray]]:
    """Returns each subject's training images as squares, (H, W, 3) uint8."""
    framing = Framing(config.resolution, config.resolution, 0, False, 0)
    found = []
    for subject in config.subjects:
        images = scan(subject.instance_dir, subject.instance_prompt, "data.instance_dir").pictures
        found.append([pixels for variants in framed(images, framing) for pixels in variants.pixels])
    return found


class Scorer:
    """Scores images against a run's training images and prompts; what does not change is embedded once."""

    def __init__(self, extractors: FeatureModels, entries: Sequence[EvalPrompt], shown: Sequence[Sequence[np.ndarray]]):
        """Embeds captions and references.

        Args:
            shown: each subject's training images.
        """
        self.entries, self.extractors = entries, extractors
        both = (extractors.clip, extractors.dino)
        self._references = [[one.images(images) for images in shown] if one else None for one in both]
        self._captions = extractors.clip.texts([entry.caption for entry in entries]) if extractors.clip else None

    def __call__(self, images: Sequence[Sequence[np.ndarray]]) -> Scores:
        """Scores the images of each entry, (H, W, 3) uint8."""
        with progress("measure", total=None, transient=True):
            embedded = [
                ImageFeatures([one.images(each) for each in images], known) if one and known else None
                for one, known in zip((self.extractors.clip, self.extractors.dino), self._references, strict=True)
            ]
        return compute_scores(self.entries, embedded[0], self._captions, embedded[1])
