"""The metrics and their intervals, against plain float64 formulas."""

import numpy as np
import pytest

from jaxbooth.metrics.bootstrap import bootstrap_mean
from jaxbooth.metrics.definitions import ImageFeatures, compute_scores, distances, similarities
from jaxbooth.metrics.prompts import EvalPrompt

PROMPTS = [
    EvalPrompt("a sks cat", "a cat", "subject", 0),
    EvalPrompt("a red zwx dog", "a red dog", "subject", 1),
    EvalPrompt("a cat", "a cat", "class", 0),
]


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    features = rng.normal(size=shape)
    return (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(np.float32)


def random_features(rng: np.random.Generator, width: int) -> ImageFeatures:
    return ImageFeatures([unit(rng, n, width) for n in (3, 3, 5)], [unit(rng, r, width) for r in (4, 6)])


def test_similarity_is_the_mean_over_all_references():
    rng = np.random.default_rng(0)
    images, references = unit(rng, 3, 8), unit(rng, 5, 8)
    expected = [np.mean([np.dot(p, r) for r in references.astype(np.float64)]) for p in images.astype(np.float64)]
    np.testing.assert_allclose(similarities(images, references), expected, atol=1e-6)


def test_equal_images_have_no_distance_and_opposite_ones_two():
    np.testing.assert_allclose(distances(np.array([[1.0, 0], [1, 0], [-1, 0]], np.float32))[0], [0, 0, 2], atol=1e-7)


def test_each_metric_uses_its_features_and_its_subject():
    rng = np.random.default_rng(1)
    clip, dino, captions = random_features(rng, 8), random_features(rng, 6), unit(rng, 3, 8)
    scores = compute_scores(PROMPTS, clip, captions, dino)
    np.testing.assert_array_equal(scores["dino"][1], similarities(dino.images[1], dino.references[1]))
    np.testing.assert_array_equal(scores["clip_i"][0], similarities(clip.images[0], clip.references[0]))
    np.testing.assert_allclose(scores["clip_t"][1], clip.images[1] @ captions[1])
    np.testing.assert_array_equal(scores["pres"][0], similarities(dino.images[2], dino.references[0]))
    np.testing.assert_array_equal(scores["div"][0], distances(dino.images[2]))
    assert [len(each) for each in scores["div_subject"]] == [3, 3]


def test_without_dino_the_class_is_measured_with_clip():
    rng = np.random.default_rng(1)
    clip = random_features(rng, 8)
    scores = compute_scores(PROMPTS, clip, unit(rng, 3, 8), None)
    assert set(scores) == {"clip_i", "clip_t", "pres", "div", "div_subject"}
    np.testing.assert_array_equal(scores["pres"][0], similarities(clip.images[2], clip.references[0]))


def test_without_a_class_prompt_nothing_is_said_of_the_class():
    rng = np.random.default_rng(1)
    scores = compute_scores(PROMPTS[:2], random_features(rng, 8), unit(rng, 2, 8), None)
    assert set(scores) == {"clip_i", "clip_t", "div_subject"}


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    # One prompt, so that only images are resampled: 1.96 standard errors to each side.
    scores = np.random.default_rng(2).normal(0.7, 0.1, size=400)
    interval = bootstrap_mean([scores])
    error = scores.std() / 20
    assert interval.mean == pytest.approx(scores.mean(), abs=1e-12)
    assert interval.low == pytest.approx(scores.mean() - 1.96 * error, abs=0.15 * error)
    assert interval.high == pytest.approx(scores.mean() + 1.96 * error, abs=0.15 * error)


def test_prompts_that_differ_widen_the_interval():
    # Images of a prompt agree; with k prompts the standard error is that of k numbers, not of k * n.
    prompts = np.random.default_rng(3).normal(0.5, 0.1, size=100)
    interval = bootstrap_mean([np.full(4, value) for value in prompts])
    assert interval.low is not None
    assert interval.high is not None
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * prompts.std() / 10, rel=0.1)


def test_an_image_is_no_pair_with_itself():
    pairs = np.array([[0, 0.2, 0.4], [0.2, 0, 0.6], [0.4, 0.6, 0]])
    interval = bootstrap_mean([pairs])
    assert interval.mean == pytest.approx(0.4)
    assert interval.low is not None
    assert interval.low >= 0.2 - 1e-12


def test_one_image_has_no_interval():
    assert bootstrap_mean([np.array([0.3])]) == (0.3, None, None, 1)


def test_the_same_scores_have_the_same_interval():
    scores = [np.linspace(0, 1, 4), np.linspace(0, 2, 4)]
    assert bootstrap_mean(scores) == bootstrap_mean(scores)
