"""What `train-many` encodes of a subject is what a run of that subject alone encodes, whatever was encoded before."""

from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from jaxbooth.base.trainable import add_trainable
from jaxbooth.config.run_config import Config
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.many.encoders import Encoders
from jaxbooth.runs.contact_sheet import contact_sheet
from jaxbooth.runs.inputs import read_inputs, scan_class_folders
from jaxbooth.runs.training_data import encode_training_data
from tests.test_caption_variants import TAGGED

TEXT = {"shuffle_tags": True, "keep_tags": 1, "caption_variants": 4, "caption_dropout": 0.1}


@pytest.fixture
def photos(tmp_path) -> Path:
    """Photos of two subjects, one of them with a mask, tags and two captions of an image, and images of a class."""
    draw = np.random.default_rng(0)
    for name in ("dog", "cat", "class"):
        (tmp_path / name).mkdir()
        for index in range(2):
            pixels = draw.integers(0, 256, (72, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    for name in ("dog", "cat"):
        Image.fromarray(np.tri(72, 64, dtype=np.uint8) * 255).save(tmp_path / name / "0.mask.png")
    (tmp_path / "dog" / "0.txt").write_text("sks on grass\nsks, running\n")
    (tmp_path / "dog" / "1.txt").write_text(TAGGED)
    (tmp_path / "class" / "0.txt").write_text("a dog, asleep\n")
    return tmp_path


@pytest.mark.parametrize("data", [{"masks": True, "flip": True}, {"crop": "random", "random_crops": 3}])
def test_a_subjects_images_and_captions_are_those_of_its_run_alone(base, params, mesh, photos, data):
    encoders = Encoders(base, mesh, params)
    for seed, name in enumerate(("cat", "dog")):
        paths = {"instance_dir": photos / name, "class_dir": photos / "class", "class_prompt": "a dog"}
        prompt = {"instance_prompt": "a sks dog", "resolution": 64, "num_class_images": 2}
        prior = {"method": ["class-images", "output-preservation"]}
        config = Config.model_validate({"seed": seed, "data": paths | prompt | data, "text": TEXT, "prior": prior})
        inputs = read_inputs(config, add_trainable(base, config))
        images = TrainingImages(config.resolution, config.data.masks)
        contact_sheet(config, inputs, images)
        [files] = [folder.images for folder in scan_class_folders((), inputs.classes)]
        found = encoders.encode(config, inputs, images, files)
        alone = encode_training_data(config, inputs, images, params, [files], mesh)
        [cache], [slices] = alone.caches, alone.slices
        assert found.slices == slices
        jax.tree.map(np.testing.assert_array_equal, found.captions, cache.captions)
        assert found.captions.counts.max() > 1
        assert found.captions.class_caption is not None
        jax.tree.map(np.testing.assert_array_equal, found.images, cache.images)
        assert (found.images.masks is not None) == ("masks" in data)
        np.testing.assert_allclose(found.text.prompt_embeds, cache.text.prompt_embeds, atol=1e-5)
