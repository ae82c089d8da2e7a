"""Scores of generated images: which CLIP and DINO measure them, against which training images and captions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxbooth.assets import EMBEDDED_MODELS
from jaxbooth.base.sampling import ImageSampler
from jaxbooth.config.schema import EvaluationConfig, Subject
from jaxbooth.console.progress import progress
from jaxbooth.data.crops import CropSpec, load_augmentations
from jaxbooth.data.held_out import hold_out
from jaxbooth.data.images import scan_folder
from jaxbooth.errors import UserError
from jaxbooth.metrics.bootstrap import bootstrap_mean
from jaxbooth.metrics.definitions import ImageFeatures, Scores, compute_scores
from jaxbooth.metrics.features import ClipFeatureModel, FeatureModel, load_clip, load_dino
from jaxbooth.metrics.prompts import EvalPrompt, by_prompt, cells
from jaxbooth.params import Params
from jaxbooth.weights.source import Source

CLIP = "openai/clip-vit-base-patch32"  # the paper's section 4.1 has CLIP ViT-B/32 and DINO ViT-S/16
DINO = "facebook/dino-vits16"
NONE = "none"
EvaluateParams = Callable[[dict[str, Params]], dict[str, float]]  # params of all components -> eval/<metric>: mean


@dataclass(frozen=True)
class FeatureModels:
    """CLIP, DINO or both."""

    clip: ClipFeatureModel | None
    dino: FeatureModel | None

    @property
    def loaded(self) -> dict[str, FeatureModel]:
        """Those that there are, by name."""
        models = {"clip": self.clip, "dino": self.dino}
        return {name: model for name, model in models.items() if model}

    def metadata(self) -> dict[str, Any]:
        """Which they are, for JSON."""
        known = {key: {"name": model.name, "fingerprint": model.fingerprint} for key, model in self.loaded.items()}
        return {"clip": None, "dino": None} | known


def load_feature_models(clip: str | None, dino: str | None, base: Source, mesh: Mesh) -> FeatureModels:
    """Loads CLIP and DINO.

    Args:
        clip, dino: folder or Hub id; "none" leaves one out. By default the paper's, or for an embedded model the
            embedded CLIP alone, which knows its images.
        base: the run's base model; whether pickles may be read and the Hub asked holds for these models too.

    Raises:
        UserError: none is left, or one cannot be loaded.
    """
    is_embedded = base.name in EMBEDDED_MODELS
    clip = clip or ("demo" if is_embedded else CLIP)
    dino = dino or (NONE if is_embedded else DINO)
    if clip == dino == NONE:
        raise UserError("--clip and --dino are both none; leave one of them to measure with.")
    terms = Source("", offline=base.offline, allow_pickle=base.allow_pickle)
    return FeatureModels(
        None if clip == NONE else load_clip(replace(terms, name=clip), mesh),
        None if dino == NONE else load_dino(replace(terms, name=dino), mesh),
    )


def reference_images(
    subjects: Sequence[Subject], resolution: int, held_out: int = 0, seed: int = 0
) -> list[list[np.ndarray]]:
    """Returns each subject's training images, cropped to (resolution, resolution, 3) uint8.

    Args:
        held_out: images of each subject that the run did not train on; its seed decides which.
    """
    framing = CropSpec(resolution, resolution, 0, False, 0)
    references = []
    for subject in subjects:
        folder = scan_folder(subject.instance_dir, subject.instance_prompt, "data.instance_dir")
        images = hold_out(folder, held_out, seed)[0].images
        references.append([pixels for variants in load_augmentations(images, framing) for pixels in variants.pixels])
    return references


class Scorer:
    """Scores generated images against a run's training images and prompts, whose features are computed once."""

    def __init__(
        self, models: FeatureModels, prompts: Sequence[EvalPrompt], references: Sequence[Sequence[np.ndarray]]
    ):
        """Computes the features of captions and references.

        Args:
            references: each subject's training images.
        """
        self.models, self.prompts = models, prompts
        self._captions = models.clip.text_features([prompt.caption for prompt in prompts]) if models.clip else None
        self._references = {
            name: [model.image_features(images) for images in references] for name, model in models.loaded.items()
        }

    def score(self, images: Sequence[Sequence[np.ndarray]]) -> Scores:
        """Scores the images of each prompt, (H, W, 3) uint8."""
        features = {}
        with progress("measure", total=None, transient=True):
            for name, model in self.models.loaded.items():
                features[name] = ImageFeatures(list(map(model.image_features, images)), self._references[name])
        return compute_scores(self.prompts, features.get("clip"), self._captions, features.get("dino"))


def training_evaluation(
    config: EvaluationConfig, scorer: Scorer, image_sampler: ImageSampler, seed: int
) -> EvaluateParams:
    """Returns the short evaluation that a run makes while it trains: it generates images and returns mean scores."""
    prompts = scorer.prompts
    wanted = cells(prompts, config.images_per_prompt, config.num_class_images)

    def evaluate_params(params: dict[str, Params]) -> dict[str, float]:
        texts = [prompts[cell.prompt].text for cell in wanted]
        images = image_sampler.generate(params, texts, seed, [cell.image for cell in wanted])
        scores = scorer.score(by_prompt(list(images), wanted, len(prompts)))
        return {f"eval/{name}": bootstrap_mean(arrays).mean for name, arrays in scores.items()}

    return evaluate_params
