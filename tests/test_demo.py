"""The demos, whole: the subject is learned and the class is kept."""

import numpy as np
import pytest
from PIL import Image

from jaxbooth.assets import DEMO_SUBJECT, EMBEDDED_MODELS
from tests.commands import jaxbooth, succeed


def nearest(folder, references) -> float:
    """Median over a folder's images of the mean squared distance to the nearest reference."""
    images = [np.asarray(Image.open(path)) / 255.0 for path in sorted(folder.glob("*.png"))]
    return float(np.median([min(np.square(image - other).mean() for other in references) for image in images]))


@pytest.mark.slow
@pytest.mark.parametrize("model", EMBEDDED_MODELS)
def test_an_embedded_model_learns_the_subject_and_keeps_the_class(model, tmp_path):
    succeed(jaxbooth("train", model, "--run-dir", tmp_path / "run"))
    references = [
        np.asarray(Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS)) / 255.0
        for path in DEMO_SUBJECT.glob("*.png")
    ]
    for name, prompt in (("subject", "an emoji of a sks cat"), ("class", "an emoji of a cat")):
        flags = ["--prompt", prompt, "--num", 8, "--steps", 20, "--guidance-scale", 4, "--out", tmp_path / name]
        succeed(jaxbooth("sample", tmp_path / "run", *flags))
    assert nearest(tmp_path / "subject", references) < 0.01
    assert nearest(tmp_path / "class", references) > 0.03
