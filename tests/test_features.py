"""Features of images and prompts, from the embedded CLIP and from folders that transformers saved."""

import jax
import numpy as np
import pytest
from PIL import Image

from jaxbooth.assets import DEMO_CLIP, DEMO_SUBJECT
from jaxbooth.metrics.features import BATCH_SIZE, load_clip, load_dino
from jaxbooth.sharding import make_mesh
from jaxbooth.weights.source import Source
from tests.feature_model_folders import clip_in_torch, dino_in_torch, sample_images, save_clip, save_dino, save_dinov2

TOLERANCE = 1e-5  # features have length 1
PROMPTS = ["an emoji of a cat", "", "a 3d emoji of a red apple on a blue background and " + "many more words " * 20]
SUBJECT = ["cat-face", "crying", "grinning", "heart-eyes", "wry-smile"]


@pytest.fixture(scope="module")
def demo(mesh):
    return load_clip(Source("demo"), mesh)


@pytest.fixture(scope="module")
def subject() -> list[Image.Image]:
    return [Image.open(DEMO_SUBJECT / f"{name}.png") for name in SUBJECT]


# The embedded CLIP


def test_the_embedded_clip_knows_a_cat_when_it_sees_one(demo, subject):
    kinds = ["cat", "red apple", "car", "house", "rocket", "banana"]
    likeness = demo.image_features(subject) @ demo.text_features([f"a 3d emoji of a {kind}" for kind in kinds]).T
    assert [kinds[best] for best in likeness.argmax(axis=1)] == ["cat"] * 5


def test_the_embedded_clip_tells_faces_apart(demo, subject):
    captions = ["crying cat", "smiling cat with heart-eyes", "cat with wry smile"]
    texts = demo.text_features([f"a 3d emoji of a {caption}" for caption in captions])
    likeness = demo.image_features(subject) @ texts.T
    assert [likeness[SUBJECT.index(face)].argmax() for face in ("crying", "heart-eyes", "wry-smile")] == [0, 1, 2]


def test_the_embedded_clip_equals_transformers(demo, subject, rng):
    images = [*subject, *sample_images(rng)]
    expected_images, expected_texts = clip_in_torch(DEMO_CLIP, images, PROMPTS)
    np.testing.assert_allclose(demo.image_features(images), expected_images, atol=TOLERANCE)
    np.testing.assert_allclose(demo.text_features(PROMPTS), expected_texts, atol=TOLERANCE)


def test_features_do_not_depend_on_what_else_is_in_the_batch_or_on_its_end(demo, rng):
    pixels = list(rng.integers(0, 256, (BATCH_SIZE + 3, 20, 30, 3), dtype=np.uint8))
    found = demo.image_features(pixels)
    assert found.shape == (BATCH_SIZE + 3, 128)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[-1:], demo.image_features(pixels[-1:]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_images_of_any_size_take_one_program(demo, rng):
    demo.image_features(sample_images(rng))
    demo.image_features(sample_images(rng)[:2])
    demo.text_features(PROMPTS[:1])
    demo.text_features(PROMPTS * 8)
    assert demo._images.program._cache_size() == 1
    assert demo._texts.program._cache_size() == 1


def test_nothing_has_no_features(demo):
    assert demo.image_features([]).shape == (0, 128)
    assert demo.text_features([]).shape == (0, 128)


def test_eight_devices_see_what_one_sees(demo, subject):
    spread = load_clip(Source("demo"), make_mesh(data=2, fsdp=2, tensor=2))
    kernel = spread._images.params["vision_model.encoder.layers.0.mlp.fc1.kernel"]
    assert kernel.sharding.shard_shape((192, 768)) == (96, 384)
    np.testing.assert_allclose(spread.image_features(subject), demo.image_features(subject), atol=TOLERANCE)
    np.testing.assert_allclose(spread.text_features(PROMPTS), demo.text_features(PROMPTS), atol=TOLERANCE)


# Folders that transformers saved


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_saved_clip_of_any_dtype_equals_transformers_in_float32(dtype, mesh, tmp_path, rng):
    folder, images = save_clip(tmp_path / "clip", dtype), sample_images(rng)
    clip = load_clip(Source(str(folder)), mesh)
    expected_images, expected_texts = clip_in_torch(folder, images, PROMPTS)
    assert clip.image_features(images).shape == (5, 20)
    np.testing.assert_allclose(clip.image_features(images), expected_images, atol=TOLERANCE)
    np.testing.assert_allclose(clip.text_features(PROMPTS), expected_texts, atol=TOLERANCE)


def test_a_sharded_clip_equals_a_whole_one(mesh, tmp_path, rng):
    whole = load_clip(Source(str(save_clip(tmp_path / "whole"))), mesh)
    folder = save_clip(tmp_path / "parts", max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    sharded = load_clip(Source(str(folder)), mesh)
    np.testing.assert_array_equal(sharded.text_features(PROMPTS), whole.text_features(PROMPTS))


@pytest.mark.parametrize("published", [True, False], ids=["published names", "names of transformers 5"])
@pytest.mark.parametrize("save", [save_dino, save_dinov2])
def test_a_saved_dino_equals_transformers(save, published, mesh, tmp_path, rng):
    folder, images = save(tmp_path / "dino", save_original_format=published), sample_images(rng)
    dino = load_dino(Source(str(folder)), mesh)
    np.testing.assert_allclose(dino.image_features(images), dino_in_torch(folder, images), atol=TOLERANCE)


def test_a_gated_dinov2_equals_transformers(mesh, tmp_path, rng):
    folder, images = save_dinov2(tmp_path / "giant", gated=True), sample_images(rng)
    found = load_dino(Source(str(folder)), mesh).image_features(images)
    np.testing.assert_allclose(found, dino_in_torch(folder, images), atol=TOLERANCE)


def test_names_and_fingerprints_tell_extractors_apart(demo, mesh, tmp_path):
    folders = [str(save_clip(tmp_path / name, dtype)) for name, dtype in (("a", "float32"), ("b", "float16"))]
    opened = [load_clip(Source(folder), mesh) for folder in (*folders, folders[0])]
    assert [clip.name for clip in (demo, *opened)] == ["demo", folders[0], folders[1], folders[0]]
    prints = [clip.fingerprint for clip in (demo, *opened)]
    assert len(set(prints)) == 3
    assert prints[1] == prints[3]
    settings = tmp_path / "a" / "preprocessor_config.json"
    settings.write_text(settings.read_text().replace('"resample": 3', '"resample": 2'))
    assert load_clip(Source(folders[0]), mesh).fingerprint != prints[1]


def test_no_weight_is_held_in_less_than_float32(mesh, tmp_path):
    clip = load_clip(Source(str(save_clip(tmp_path / "clip", "bfloat16"))), mesh)
    assert {value.dtype for value in jax.tree.leaves(clip._images.params)} == {np.dtype(np.float32)}
