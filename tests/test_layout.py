"""Several subjects and several shapes: whose turn a row is, which image it takes, and the same after a stop."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

from jaxbooth.config.run_config import Config
from jaxbooth.console.progress import progress
from jaxbooth.data.buckets import BLOCK, BucketOrder
from jaxbooth.diffusion.loss import Role
from jaxbooth.distributed.stop_agreement import StopAgreement
from jaxbooth.prng import key_data
from jaxbooth.runs.loop import TrainingLoop
from jaxbooth.runs.metric_writer import MetricWriter, read_metrics
from jaxbooth.runs.training_data import TrainingData
from jaxbooth.training.layout import (
    ImageSlice,
    RoleWeights,
    RowCounts,
    SubjectSlices,
    batch_layout,
    sample_indices,
    subject_slices,
)

METRICS = ("loss", "instance_loss", "prior_loss", "grad_norm", "learning_rate")

Row = tuple[bool, int, float]  # is prior, image, weight
# Three subjects; the first two share a class.
SLICES = subject_slices([3, 5, 2], [7, 4], [0, 0, 1], [1.0, 2.0, 0.5])
BATCHES = [RowCounts(1, 1), RowCounts(2, 5), RowCounts(7, 3)]  # instance and prior rows
SUBJECTS, CLASSES = {0: range(3), 1: range(3, 8), 2: range(8, 10)}, {0: range(10, 17), 1: range(17, 21)}


def owner(image: int, spans: dict[int, range]) -> int:
    """The subject or class that an image belongs to."""
    return next(number for number, piece in spans.items() if image in piece)


@functools.cache
def take(slices: SubjectSlices, counts: RowCounts, micro_batches: int = 1, steps: int = 63) -> list[list[Row]]:
    """Returns the rows of each step, in the order of their numbers."""
    layout = batch_layout(counts, RoleWeights(1.0), micro_batches, shards=1)
    pick = jax.jit(lambda step, part: sample_indices(slices, jax.random.key(5), step, part, counts, augmentations=2))
    found = []
    for step in range(steps):
        rows = {}
        for part in range(micro_batches):
            own = jax.tree.map(lambda field, part=part: field[part], layout)
            picked = pick(jnp.int32(step), own)
            for number, prior, image, weight in zip(
                own.index, own.role == Role.CLASS, picked.image, picked.weight, strict=True
            ):
                rows[int(number)] = (bool(prior), int(image), float(weight))
        found.append([rows[number] for number in range(sum(counts))])
    return found


def images(steps: list[list[Row]], prior: bool) -> list[int]:
    """Images of the instance or prior rows, one step after the other."""
    return [image for rows in steps for is_prior, image, _ in rows if is_prior == prior]


# Layout


def test_subjects_lie_before_classes_in_a_cache():
    assert SLICES.instances == (ImageSlice(0, 3), ImageSlice(3, 5), ImageSlice(8, 2))
    assert SLICES.classes == (ImageSlice(10, 7), ImageSlice(17, 4))


def test_a_subject_without_images_is_left_out_with_its_class_and_weight():
    slices = subject_slices([3, 0, 2], [7, 4], [0, 0, 1], [1.0, 2.0, 0.5])
    assert slices.instances == (ImageSlice(0, 3), ImageSlice(3, 2))
    assert (slices.class_of, slices.weights) == ((0, 1), (1.0, 0.5))
    assert slices.classes == (ImageSlice(5, 7), ImageSlice(12, 4))


# Turns


@pytest.mark.parametrize("counts", BATCHES)
def test_subjects_take_turns_row_after_row_whatever_the_batch(counts):
    steps = take(SLICES, counts)
    turns = [owner(image, SUBJECTS) for image in images(steps, prior=False)]
    assert turns == [row % 3 for row in range(len(turns))]
    kinds = [owner(image, CLASSES) for image in images(steps, prior=True)]
    assert kinds == [SLICES.class_of[row % 3] for row in range(len(kinds))]


def test_rows_of_a_subject_and_of_its_class_carry_its_weight():
    for prior in (False, True):
        steps = take(SLICES, RowCounts(2, 5))
        weights = [weight for rows in steps for is_prior, _, weight in rows if is_prior == prior]
        assert weights == [SLICES.weights[row % 3] for row in range(len(weights))]


@pytest.mark.parametrize("counts", BATCHES)
def test_a_subject_shows_all_its_images_before_it_repeats_one(counts):
    shown = images(take(SLICES, counts), prior=False)
    for piece in SUBJECTS.values():
        own = [image for image in shown if image in piece]
        for start in range(0, len(own) - len(piece) + 1, len(piece)):
            assert sorted(own[start : start + len(piece)]) == list(piece)


@pytest.mark.parametrize("counts", BATCHES)
def test_subjects_of_one_class_share_its_order_and_repeat_no_image_before_all_were_shown(counts):
    shown = images(take(SLICES, counts), prior=True)
    for piece in CLASSES.values():
        own = [image for image in shown if image in piece]
        assert len(own) >= 2 * len(piece)
        epochs = [own[start : start + len(piece)] for start in range(0, len(own) - len(piece) + 1, len(piece))]
        assert all(sorted(epoch) == list(piece) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_class_rests_where_none_of_its_subjects_is():
    slices = subject_slices([3, 0, 2], [7, 4, 6], [0, 1, 0], [1.0, 1.0, 1.0])
    shown = images(take(slices, RowCounts(2, 2)), prior=True)
    assert sorted(shown) == sorted([*range(5, 12)] * 18)


def test_a_batch_larger_than_a_bucket_shows_every_image_about_as_often():
    times = Counter(images(take(subject_slices([3], [2], [0], [1.0]), RowCounts(8, 8), steps=1), prior=False))
    assert sorted(times.values()) == [2, 3, 3]


def test_micro_batches_take_the_rows_of_the_whole_batch():
    assert take(SLICES, RowCounts(6, 4), micro_batches=2) == take(SLICES, RowCounts(6, 4))


# Shapes: which cache a step reads, and from which place

ORDER = BucketOrder((3, 1, 2), 4)
STEPS = 13 * BLOCK + 7


def loop_of(folder, longest: int, begin: int) -> TrainingLoop:
    """A loop whose steps report the cache and the place that they read, in place of two losses."""

    @jax.jit
    def dispatch(step, frozen, source, key, count):
        places = {"loss": step + jnp.arange(longest) - source.skipped, "prior_loss": jnp.full(longest, source.cache)}
        return step + count, {name: jnp.float32(places.get(name, jnp.zeros(longest))) for name in METRICS}

    config = Config.model_validate({"train": {"steps": STEPS, "steps_per_dispatch": longest}})
    data = TrainingData(tuple(map(jnp.int32, range(3))), (), ORDER, key_data(0))
    writer = MetricWriter(folder / "metrics.jsonl", folder / "tensorboard", begin)
    return TrainingLoop(config, [dispatch] * 3, data, {}, None, writer, None, StopAgreement())


def places(folder, longest: int, stops: list[int]) -> list[tuple[int, int]]:
    """Returns the cache and the place of every step of a run that was stopped and continued at `stops`."""
    begin = 0
    for stop in stops:
        loop = loop_of(folder, longest, begin)
        with progress("train", STEPS) as bar:
            _, begin, _ = loop.advance(jnp.int32(begin), begin, stop, bar)
        loop.writer.close()
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [(int(line["prior_loss"]), int(line["loss"])) for line in lines]


@pytest.mark.parametrize(("longest", "stops"), [
    (1, [STEPS]), (7, [STEPS]), (BLOCK, [STEPS]), (64, [STEPS]),
    (7, [3, BLOCK, 5 * BLOCK + 1, STEPS]), (64, [37, 38, 90, STEPS]),
])  # fmt: skip
def test_every_cache_is_read_from_its_start_without_a_gap_however_the_run_is_cut(longest, stops, tmp_path):
    seen: Counter[int] = Counter()
    for step, (cache, place) in enumerate(places(tmp_path, longest, stops)):
        assert cache == ORDER.bucket(step)
        assert place == seen[cache]
        seen[cache] += 1
    assert set(seen) == {0, 1, 2}


def test_a_step_skips_those_that_took_their_rows_from_other_caches():
    data = TrainingData((0, 1, 2), (), ORDER, key_data(0))
    for step in range(STEPS):
        others = sum(ORDER.bucket(before) != ORDER.bucket(step) for before in range(step))
        assert data.source(step) == (ORDER.bucket(step), others)
    assert TrainingData((0,), (), BucketOrder((9,), 0), key_data(0)).source(12345).skipped == 0
