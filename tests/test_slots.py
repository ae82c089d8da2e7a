"""Many subjects in one step: each of them trains as it would alone."""

import functools
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxbooth.base.trainable import unused_parameters
from jaxbooth.config.rates import learning_rates
from jaxbooth.distributed.arrays import put
from jaxbooth.sharding import BATCH_AXES, batch_sharding, make_mesh
from jaxbooth.training.layout import subject_slices
from jaxbooth.training.optimizer import make_slot_optimizer
from jaxbooth.training.slot_rows import stack_rows, subject_rows
from jaxbooth.training.slots import SlotText, make_slot_dispatch
from tests.training import INSTANCES, PRIORS, Setup, configure, make_spec, run, setup, several_captions

SEEDS, STEPS = (7, 11, 2**40), (5, 3, 4)
LORA = {"rank": 2, "alpha": 3.0}
# Adam divides by the root of its second moment, which is rounding alone where a gradient is.
ADAM = {"eps": 1e-3, "learning_rate": 1e-2}


def subjects_alone(base, params, mesh, **settings) -> list[tuple[Setup, dict]]:
    """Three subjects of other seeds, images, lengths and rates: what a run of each begins with, and its settings."""
    made = []
    for number, (seed, steps) in enumerate(zip(SEEDS, STEPS, strict=True)):
        own = ADAM | {"lora": LORA} | settings | {"seed": seed, "steps": steps}
        own["learning_rate"] = own["learning_rate"] * (1 + number)
        subject = several_captions(setup(base, params, mesh, (1, 1), **own))
        images = subject.source.cache.images
        cache = subject.source.cache._replace(images=images._replace(mean=images.mean + number))
        made.append((subject._replace(source=subject.source._replace(cache=cache)), own))
    return made


def train_together(base, mesh, subjects, dispatches=(2, 3), order=(0, 1, 2)):
    """Trains subjects in slots, dispatch after dispatch; returns each one's last state and losses."""
    first, settings = subjects[0]
    config = configure((1, 1), **settings)
    spec = make_spec(first.spec.base, config, mesh, slots=len(order))
    slices = subject_slices([INSTANCES], [PRIORS], [0], [1.0])
    feeds = []
    for number in order:
        subject, own = subjects[number]
        own_config, cache = configure((1, 1), **own), jax.device_get(subject.source.cache)
        feeds.append(
            subject_rows(
                spec, slices, cache.images, cache.captions, subject.key, own_config.train, learning_rates(own_config)
            )
        )
    on_slots, on_rows = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec(None, BATCH_AXES))
    state = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(jax.device_get(subjects[number][0].state) for number in order)
    )
    caches = [subjects[number][0].source.cache for number in order]
    text = SlotText(
        *jax.tree.map(lambda *leaves: np.stack(leaves), *((cache.text, cache.frozen_text) for cache in caches))
    )
    keys = np.stack([subjects[number][0].key for number in order])
    state, text, keys = put((state, text, keys), on_slots)
    no_gradient = unused_parameters(spec.base, {})
    optimizer_of = functools.partial(
        make_slot_optimizer, config.train, no_gradient=no_gradient, b_ratio=config.lora.b_rate_ratio
    )
    dispatch = make_slot_dispatch(spec, optimizer_of, max(dispatches))
    done, losses = [0] * len(order), [[] for _ in order]
    for limit in dispatches:
        counts = [min(limit, STEPS[number] - step) for number, step in zip(order, done, strict=True)]
        rows = put(stack_rows(feeds, done, counts, max(dispatches)), on_rows)
        state, metrics = dispatch(state, first.frozen, text, rows, keys, np.int32(limit))
        for slot, count in enumerate(counts):
            losses[slot].extend(np.asarray(metrics["loss"])[:count, slot])
        done = [step + count for step, count in zip(done, counts, strict=True)]
    return {
        number: (jax.tree.map(lambda leaf, slot=slot: np.asarray(leaf)[slot], state), losses[slot])
        for slot, number in enumerate(order)
    }


def lower_slots(base, params, mesh, slots):
    """Lowers the dispatch of fresh subjects, each with 3 rows: no kernel has as many inputs as those have tokens."""
    subject = setup(base, params, mesh, (2, 1), lora=LORA)
    config = configure((2, 1), lora=LORA)
    spec, cache = make_spec(subject.spec.base, config, mesh, slots=slots), jax.device_get(subject.source.cache)
    slices = subject_slices([INSTANCES], [PRIORS], [0], [1.0])
    rows = subject_rows(spec, slices, cache.images, cache.captions, subject.key, config.train, learning_rates(config))
    repeated = jax.tree.map(lambda leaf: np.stack([leaf] * slots), (subject.state, (cache.text, None), subject.key))
    state, text, keys = put(repeated, batch_sharding(mesh))
    dispatch = make_slot_dispatch(spec, functools.partial(make_slot_optimizer, config.train), 2)
    feed = stack_rows([rows] * slots, [0] * slots, [2] * slots, 2)
    return dispatch.lower(state, subject.frozen, SlotText(*text), feed, keys, np.int32(2))


def check_equal_to_alone(subjects, together):
    for (subject, own), number in zip(subjects, sorted(together), strict=True):
        start = jax.device_get(subject.state.params)
        state, metrics = run(*subject, [own["steps"]], max_steps=8)
        found, losses = together[number]
        np.testing.assert_allclose(losses, metrics["loss"], rtol=2e-5)
        assert found.step == state.step == own["steps"]
        assert jax.tree.structure(found) == jax.tree.structure(state)
        for name, value in state.params.items():
            moved = np.abs(np.asarray(value) - start[name]).max()
            np.testing.assert_allclose(found.params[name], value, rtol=1e-5, atol=1e-3 * moved + 1e-7, err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param(
            {
                "data": {"masks": True},
                "loss": {"outside_mask": "frozen"},
                "text": {"caption_dropout": 0.3},
                "prior": {"method": ("class-images", "output-preservation")},
            },
            marks=pytest.mark.slow,
        ),
        pytest.param({"optimizer": "prodigy", "learning_rate": 1.0, "lr_scheduler": "linear"}, marks=pytest.mark.slow),
        pytest.param({"optimizer": "schedule_free_adamw", "warmup_steps": 2}, marks=pytest.mark.slow),
        pytest.param({"optimizer": "lion", "learning_rate": 1e-4}, marks=pytest.mark.slow),
        pytest.param({"optimizer": "adafactor", "learning_rate": 1e-4}, marks=pytest.mark.slow),
        pytest.param(
            {
                "lora": LORA | {"targets": "attention+ff+conv", "rslora": True},
                "lr_scheduler": "cosine",
                "warmup_steps": 1,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {
                "prior": {"method": ("output-preservation", "weight-anchor")},
                "ema_decay": 0.9,
                "remat": "blocks",
                "lora": LORA | {"b_rate_ratio": 4.0},
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"text_encoder": True, "text": {"learning_rate": 1e-3}, "prior": {"target": "frozen"}},
            marks=pytest.mark.slow,
        ),
    ],
    ids=[
        "attention",
        "masks-captions",
        "prodigy",
        "schedule-free",
        "lion",
        "adafactor",
        "all-layers",
        "distilled",
        "text",
    ],
)
def test_a_subject_among_others_trains_as_alone(micro, micro_params, mesh, settings):
    subjects = subjects_alone(micro, micro_params, mesh, **settings)
    check_equal_to_alone(subjects, train_together(micro, mesh, subjects))


@pytest.mark.parametrize("family", ["zimage", pytest.param("klein", marks=pytest.mark.slow)])
def test_so_it_does_with_a_flow_model(flow_model, mesh, family):
    base, params = flow_model(family)
    subjects = subjects_alone(base, params, mesh, lora=LORA | {"targets": "attention+ff"})
    check_equal_to_alone(subjects, train_together(base, mesh, subjects))


@pytest.mark.parametrize("sizes", [(2, 2, 2), pytest.param((4, 1, 1), marks=pytest.mark.slow)])
def test_neither_the_devices_nor_the_slot_matter(micro, micro_params, mesh, sizes):
    subjects = subjects_alone(micro, micro_params, mesh)
    spread = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    placed = subjects_alone(micro, micro_params, spread)
    check_equal_to_alone(subjects, train_together(micro, spread, placed, order=(2, 0, 1, 1)))


def test_the_base_models_kernels_are_not_repeated_for_the_slots(micro, micro_params, mesh):
    slots = 5  # no other size of the model
    lowered = lower_slots(micro, micro_params, mesh, slots)
    kernels = {shape.shape for name, shape in micro.denoiser.shapes.items() if name.endswith("kernel")}
    assert (32, 32) in kernels
    for text in (lowered.as_text(), lowered.compile().as_text()):
        shapes = {
            tuple(map(int, re.split("[x,]", found))) for found in re.findall(r"[<\[]((?:\d+[x,])*\d+)[x\]]", text)
        }
        assert (slots, 32, 2) in shapes, "the adapters are"
        assert not {shape for shape in shapes if shape[0] == slots and shape[1:] in kernels}
