"""Aspect-ratio buckets: which shape suits an image, and which bucket each step takes."""

from collections import Counter

import numpy as np
import pytest

from jaxbooth.data.buckets import BLOCK, BucketOrder, enlargement_factor, group_by_bucket, nearest_bucket
from jaxbooth.errors import UserError

# Shapes


@pytest.mark.parametrize(("size", "bucket"), [
    ((1000, 1000), (512, 512)),
    ((4000, 3000), (448, 576)),  # 4:3 lies between 1.29 and 1.67
    ((3000, 4000), (576, 448)),
    ((1920, 1080), (384, 640)),
    ((1080, 1920), (640, 384)),
    ((3000, 1000), (256, 832)),
])  # fmt: skip
def test_an_image_takes_the_shape_with_the_nearest_aspect(size, bucket):
    assert nearest_bucket(size, 512, 64) == bucket


def test_the_sdxl_shapes_of_common_photos():
    assert nearest_bucket((4000, 3000), 1024, 64) == (896, 1152)
    assert nearest_bucket((6000, 4000), 1024, 64) == (832, 1216)
    assert nearest_bucket((1920, 1080), 1024, 64) == (768, 1344)


@pytest.mark.parametrize(("resolution", "multiple"), [(512, 64), (1024, 64), (1024, 8), (768, 32), (500, 64), (64, 64)])
def test_shapes_fit_the_resolution(resolution, multiple):
    for width, height in np.random.default_rng(0).integers(1, 5000, (200, 2)):
        bucket = nearest_bucket((int(width), int(height)), resolution, multiple)
        assert all(side % multiple == 0 for side in bucket)
        assert bucket[0] * bucket[1] <= resolution**2
        assert resolution / 2 <= min(bucket) <= max(bucket) <= 2 * resolution


@pytest.mark.parametrize(("resolution", "multiple"), [(512, 64), (1024, 8)])
def test_the_short_side_is_the_longest_that_the_long_side_leaves(resolution, multiple):
    for width in range(100, 1000, 7):
        short, long = sorted(nearest_bucket((width, 300), resolution, multiple))
        assert (short + multiple) * long > resolution**2


def test_a_turned_image_takes_the_turned_shape():
    for width in range(100, 1000, 13):
        assert nearest_bucket((width, 333), 512, 64) == nearest_bucket((333, width), 512, 64)[::-1]


@pytest.mark.parametrize(("resolution", "side"), [(512, 512), (1024, 1024), (500, 448), (127, 64), (64, 64)])
def test_a_square_image_takes_the_largest_square(resolution, side):
    assert nearest_bucket((77, 77), resolution, 64) == (side, side)


def test_very_long_images_take_the_longest_shape():
    assert nearest_bucket((9000, 10), 512, 64) == (256, 1024)
    assert nearest_bucket((10, 9000), 512, 64) == (1024, 256)


def test_a_resolution_below_the_multiple_names_its_flag():
    with pytest.raises(UserError, match=r"--data\.resolution 48 .* 64 or more"):
        nearest_bucket((100, 100), 48, 64)
    with pytest.raises(UserError, match=r"--data\.resolution 48"):
        group_by_bucket([(100, 100)], 48, 64)


def test_images_are_grouped_by_shape_in_order():
    sizes = [(400, 300), (100, 100), (300, 400), (4000, 3000), (7, 7)]
    found = group_by_bucket(sizes, 512, 64)
    assert list(found.items()) == [((448, 576), [0, 3]), ((512, 512), [1, 4]), ((576, 448), [2])]


def test_no_images_fill_no_bucket():
    assert group_by_bucket([], 512, 64) == {}


@pytest.mark.parametrize(
    ("size", "factor"), [((1024, 1024), 0.5), ((256, 256), 2.0), ((512, 128), 4.0), ((64, 512), 8.0)]
)
def test_enlargement_is_the_factor_that_covers_the_bucket(size, factor):
    assert enlargement_factor(size, (512, 512)) == factor


def test_enlargement_tells_height_from_width():
    assert enlargement_factor((640, 384), (384, 640)) == 1.0
    assert enlargement_factor((384, 640), (384, 640)) == 640 / 384


# The order of buckets

ORDERS = [BucketOrder((3, 1, 2), 0), BucketOrder((4, 6), 7), BucketOrder((5, 5, 5), 1), BucketOrder((12,), 2)]


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_of_steps_shares_a_bucket(order):
    for first in range(0, 1000, BLOCK):
        assert len({order.bucket(step) for step in range(first, first + BLOCK)}) == 1


@pytest.mark.parametrize(("order", "blocks"), [*zip(ORDERS, [(3, 1, 2), (2, 3), (1, 1, 1), (1,)], strict=True)])
def test_every_epoch_takes_each_bucket_in_proportion_to_its_images(order, blocks):
    length = sum(blocks) * BLOCK
    for epoch in range(20):
        found = Counter(order.bucket(step) for step in range(epoch * length, (epoch + 1) * length))
        assert found == {bucket: count * BLOCK for bucket, count in enumerate(blocks)}


@pytest.mark.parametrize("order", ORDERS)
def test_visits_are_the_earlier_steps_of_the_same_bucket(order):
    seen = Counter()
    for step in range(3000):
        bucket = order.bucket(step)
        assert order.visits(step) == seen[bucket]
        seen[bucket] += 1


def test_visits_need_no_walk_from_the_start():
    order = BucketOrder((3, 1, 2), 0)
    far = 10**12 * 6 * BLOCK  # the first step of an epoch
    assert order.visits(far) == 10**12 * (3, 1, 2)[order.bucket(far)] * BLOCK


def test_one_bucket_takes_every_step():
    order = BucketOrder((12,), 0)
    assert [order.visits(step) for step in (0, 1, 99, 12345)] == [0, 1, 99, 12345]
    assert order.block_end(12345) > 10**9


@pytest.mark.parametrize(("step", "end"), [(0, 10), (9, 10), (10, 20), (123, 130)])
def test_the_block_ends_where_another_bucket_may_follow(step, end):
    assert BucketOrder((3, 1), 0).block_end(step) == end


def test_epochs_and_seeds_order_the_blocks_differently():
    def blocks(seed: int, epoch: int) -> list[int]:
        order = BucketOrder((8, 9), seed)
        return [order.bucket((epoch * 17 + place) * BLOCK) for place in range(17)]

    assert blocks(0, 0) == blocks(0, 0)
    assert len({tuple(blocks(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
