"""Preparing images, against transformers' own image processors in their PIL form."""

import math

import numpy as np
import pytest
import transformers

from jaxbooth.errors import UserError
from jaxbooth.metrics.preprocess import read_preprocessing
from jaxbooth.storage.files import write_json
from tests.feature_model_folders import sample_images

PROCESSORS = {
    "clip": transformers.CLIPImageProcessorPil,
    "vit": transformers.ViTImageProcessorPil,
    "dinov2": transformers.BitImageProcessorPil,
}
OPENAI = {"crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3, "size": 224,
          "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
          "image_std": [0.26862954, 0.26130258, 0.27577711]}  # fmt: skip
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_normalize": True}
DINO = {"do_resize": True, "feature_extractor_type": "ViTFeatureExtractor", "resample": 3, "size": 224, **IMAGENET}
DINOV2 = {"crop_size": {"height": 224, "width": 224}, "do_center_crop": True, "do_convert_rgb": True, "resample": 3,
          "do_rescale": True, "rescale_factor": 0.00392156862745098, "do_resize": True, "size": {"shortest_edge": 256},
          "image_processor_type": "BitImageProcessor", **IMAGENET}  # fmt: skip


def prepared(tmp_path, model_type, raw, images):
    write_json(tmp_path / "preprocessor_config.json", raw)
    prepare = read_preprocessing(tmp_path, model_type)
    assert {prepare(image).shape for image in images} == {(*prepare.size, 3)}
    return np.stack([prepare(image) for image in images])


@pytest.mark.parametrize(
    ("model_type", "raw"),
    [
        ("clip", OPENAI),
        ("vit", DINO),
        ("dinov2", DINOV2),
        ("clip", {}),
        ("vit", {}),
        ("dinov2", {}),
        ("clip", OPENAI | {"size": 40, "crop_size": {"height": 55, "width": 30}, "resample": 1}),
        ("vit", {"size": [30, 45], "resample": 0, "image_mean": 0.2, "image_std": 0.3}),
        ("vit", {"do_rescale": False, "do_normalize": False}),
        ("dinov2", DINOV2 | {"do_resize": False, "crop_size": 45, "rescale_factor": 1 / 127.5}),
    ],
    ids=["openai", "dino", "dinov2", "clip's defaults", "vit's defaults", "bit's defaults", "padded crop", "fixed size",
         "8-bit values", "crop alone"],
)  # fmt: skip
def test_pixels_equal_those_of_transformers(model_type, raw, tmp_path, rng):
    images = [image.convert("RGB") for image in sample_images(rng)]
    found = prepared(tmp_path, model_type, raw, images)
    theirs = PROCESSORS[model_type].from_pretrained(tmp_path)
    expected = np.stack([theirs(image, return_tensors="np")["pixel_values"][0] for image in images])
    np.testing.assert_allclose(found, expected.transpose(0, 2, 3, 1), atol=1e-5)


def test_pixels_follow_the_formula(tmp_path, rng):
    pixels = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    expected = (pixels / 255 - np.array(OPENAI["image_mean"])) / np.array(OPENAI["image_std"])
    np.testing.assert_allclose(prepared(tmp_path, "clip", OPENAI, [pixels])[0], expected, atol=1e-5)


def test_a_processor_file_of_transformers_5_is_read(tmp_path, rng):
    image = sample_images(rng)[0]
    expected = prepared(tmp_path, "clip", OPENAI, [image])[0]
    (tmp_path / "preprocessor_config.json").unlink()
    write_json(tmp_path / "processor_config.json", {"image_processor": OPENAI, "processor_class": "CLIPProcessor"})
    np.testing.assert_array_equal(read_preprocessing(tmp_path, "clip")(image), expected)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"image_processor_type": "SiglipImageProcessor"}, "SiglipImageProcessor' is not supported"),
        (OPENAI | {"do_pad": True}, "do_pad is not supported"),
        (OPENAI | {"size": {"longest_edge": 224}}, "size {'longest_edge': 224} is not supported"),
        (OPENAI | {"do_center_crop": False}, "leaves images in different shapes"),
        (OPENAI | {"resample": "bicubic"}, "resample = 'bicubic' is not valid"),
        (OPENAI | {"image_mean": [0.5, 0.5]}, "image_mean = "),
        (OPENAI | {"image_std": [0.5, 0.5, 0]}, "image_std = "),
        (OPENAI | {"rescale_factor": math.nan}, "rescale_factor = nan is not valid"),
        (OPENAI | {"crop_size": 10**9}, "crop_size = 1000000000 is not valid"),
        (OPENAI | {"do_center_crop": 1}, "do_center_crop = 1 is not valid"),
    ],
)
def test_what_cannot_be_done_is_named_with_its_file(raw, message, tmp_path):
    write_json(tmp_path / "preprocessor_config.json", raw)
    with pytest.raises(UserError, match=message) as error:
        read_preprocessing(tmp_path, "clip")
    assert "preprocessor_config.json" in str(error.value)


def test_a_folder_without_the_file_is_named(tmp_path):
    write_json(tmp_path / "processor_config.json", {"processor_class": "CLIPProcessor"})
    with pytest.raises(UserError, match="holds no preprocessor_config"):
        read_preprocessing(tmp_path, "clip")
