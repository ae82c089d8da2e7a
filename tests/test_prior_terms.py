"""Terms that keep what the model knew: their gradients, where they are zero, and what they hold in place."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.diffusion.loss import Batch, Losses, LossSpec, Role, per_example_loss, reduce_losses
from jaxbooth.diffusion.schedule import read_schedule
from jaxbooth.models.adapter_kinds import KINDS, MAGNITUDE, LoraSpec
from jaxbooth.models.lora import lora_shapes, merge
from jaxbooth.params import ModuleDef, join
from jaxbooth.sharding import make_mesh
from jaxbooth.training.batch import make_batch
from jaxbooth.training.layout import BatchLayout, RoleWeights, RowCounts, batch_layout, row_indices
from jaxbooth.training.reference import ANCHOR
from jaxbooth.training.state import result_params
from jaxbooth.training.step import gradients, make_dispatch, metric_names, with_weight_anchor
from jaxbooth.training.weight_anchor import squared_change
from tests.training import CAPTIONS, CLASS_CAPTION, setup

DISTILLED = ["output-preservation", "blank-prompt"]
LORA = {"rank": 2, "targets": "attention+ff+conv"}


def prior(*methods, **settings):
    """Settings of the section `prior`."""
    return {"method": methods} | settings


def compiled(made):
    """Returns the jitted trained parameters -> losses and gradients of a step."""
    spec, _, frozen, source, key = made
    function = jax.jit(lambda *arguments: gradients(spec, *arguments))
    return lambda params: function(params, frozen, source, key, jnp.int32(3))


def move(params, distance=0.02):
    """Trained parameters away from where they started."""
    return {name: value + distance for name, value in params.items()}


def largest(values):
    return max(float(jnp.abs(value).max()) for value in values.values())


def only_distilled_rows(made):
    """Leaves out the instance rows, so that the model and the frozen one see batches of one size."""
    layout = made.spec.layout
    rows = np.flatnonzero(layout.role[0] != Role.INSTANCE)
    return made._replace(spec=replace(made.spec, layout=BatchLayout(*(field[:, rows] for field in layout))))


# Rows


def test_each_method_has_rows_of_its_own_and_its_weight():
    layout = batch_layout(RowCounts(4, 2, 2, 1), RoleWeights(0.5, 2.0, 3.0), micro_batches=1, shards=1)
    assert layout.role[0].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 3]
    np.testing.assert_allclose(layout.weight[0], [0.25] * 4 + [0.25] * 2 + [1.0] * 2 + [3.0])


def test_distilled_rows_are_seeded_like_the_instance_rows_that_they_go_with():
    assert row_indices(RowCounts(3, 2, 2, 5)).tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2, 5, 6]


def test_only_the_caption_tells_a_distilled_row_from_its_instance_row(micro, micro_params, mesh):
    made = setup(micro, micro_params, mesh, (2, 2), prior=prior("class-images", *DISTILLED))
    layout = BatchLayout(*(jnp.asarray(field[0]) for field in made.spec.layout))
    batch = make_batch(made.spec, made.source, made.key, jnp.int32(5), layout)
    rows = {role: np.flatnonzero(np.asarray(batch.examples.role) == role) for role in Role}
    for role, caption in ((Role.OUTPUT_PRESERVATION, CLASS_CAPTION), (Role.BLANK_PROMPT, len(CAPTIONS) - 1)):
        for field in ("latents", "noise", "timesteps"):
            values = np.asarray(getattr(batch.examples, field))
            np.testing.assert_array_equal(values[rows[role]], values[rows[Role.INSTANCE]])
        assert batch.caption[rows[role]].tolist() == [caption] * 2
    assert set(batch.caption[rows[Role.INSTANCE]].tolist()) <= {0, 1}


def test_dropped_captions_leave_output_preservation_its_caption(micro, micro_params, mesh):
    text = {"caption_dropout": 0.999}
    made = setup(micro, micro_params, mesh, (4, 4), prior=prior("output-preservation"), text=text)
    layout = BatchLayout(*(jnp.asarray(field[0]) for field in made.spec.layout))
    batch = make_batch(made.spec, made.source, made.key, jnp.int32(5), layout)
    assert batch.caption.tolist() == [len(CAPTIONS) - 1] * 4 + [CLASS_CAPTION] * 4


# The frozen model's prediction as the target


@pytest.mark.parametrize("lora", [{}, pytest.param(LORA, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_a_model_that_has_not_moved_is_at_rest_and_one_that_has_is_pulled_back(lora, micro, micro_params, mesh):
    """Only rounding is left: two float32 outputs near 1 may differ by 1e-7, and their squared difference by 1e-14."""
    made = only_distilled_rows(setup(micro, micro_params, mesh, (1, 2), prior=prior(*DISTILLED), lora=lora))
    step = compiled(made)
    losses, grads = step(made.state.params)
    assert float(losses.total) < 1e-12
    rest = largest(grads)
    moved = move(made.state.params)
    losses, grads = step(moved)
    assert rest < 1e-5 * largest(grads)
    nearer = {name: value - 1e-3 * grads[name] / largest(grads) for name, value in moved.items()}
    assert 0 < float(step(nearer)[0].total) < float(losses.total)


def test_several_methods_add_up(micro, micro_params, mesh):
    """The total is the weighted sum of the terms that the metrics report."""
    settings = prior("class-images", *DISTILLED, weight=0.5, blank_prompt_weight=3.0)
    made = setup(micro, micro_params, mesh, (2, 2), prior=settings, lora=LORA)
    step = compiled(made)
    still = step(made.state.params)[0].terms
    # The two passes differ in the last bits of float32, for they have other numbers of rows.
    assert max(float(still[f"{name}_loss"]) for name in ("output_preservation", "blank_prompt")) < 1e-11
    losses = step(move(made.state.params))[0]
    terms = {name: float(value) for name, value in losses.terms.items()}
    assert min(terms.values()) > 1e-6
    expected = terms["instance_loss"] + 0.5 * (terms["prior_loss"] + terms["output_preservation_loss"])
    np.testing.assert_allclose(float(losses.total), expected + 3 * terms["blank_prompt_loss"], rtol=1e-6)


# The layout over devices and micro-batches does not matter

EVERYTHING = {
    "prior": prior("class-images", *DISTILLED, "weight-anchor", outside_mask_weight=2.0),
    "data": {"masks": True},
    "loss": {"outside_mask": "frozen"},
}


def two_steps(made):
    """Metrics of two steps."""
    spec, state, frozen, source, key = made
    _, metrics = make_dispatch(spec, 2, state)(state, frozen, source, key, np.int32(2))
    return {name: np.asarray(metrics[name]) for name in metric_names(spec)}


@pytest.fixture(scope="module")
def on_one_device(micro, micro_params, mesh):
    return two_steps(setup(micro, micro_params, mesh, (4, 4), **EVERYTHING))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1)])
def test_all_terms_are_the_same_on_several_devices(sizes, on_one_device, micro, micro_params):
    found = two_steps(setup(micro, micro_params, make_mesh(*sizes, jax.devices()), (4, 4), **EVERYTHING))
    for name, value in on_one_device.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_all_terms_are_the_same_in_micro_batches(on_one_device, micro, micro_params, mesh):
    found = two_steps(setup(micro, micro_params, mesh, (4, 4), gradient_accumulation_steps=2, **EVERYTHING))
    for name, value in on_one_device.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


# Outside of the mask


def test_outside_of_the_mask_the_frozen_model_is_the_target(rng):
    """The instance row's loss inside is a mean weighted by the mask, the one outside by what the mask leaves."""
    schedule = read_schedule({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
    latents, noise, output, frozen = rng.normal(size=(4, 2, 4, 4, 3)).astype(np.float32)
    mask = rng.uniform(size=(2, 4, 4, 1)).astype(np.float32)
    mask[1] = 1  # nothing lies outside
    rows = Batch(latents, noise, np.array([100, 800]), np.full(2, 0.5, np.float32), np.zeros(2, np.int32), mask)
    noisy = schedule.add_noise(latents, noise, rows.timesteps)
    losses = per_example_loss(output, noisy, rows, schedule, LossSpec("epsilon", outside_mask_weight=2.0), frozen)
    error = [np.square(np.float64(output) - target).mean(axis=3, keepdims=True) for target in (noise, frozen)]
    inside = (mask * error[0]).sum(axis=(1, 2, 3)) / mask.sum(axis=(1, 2, 3))
    outside = [((1 - mask[0]) * error[1][0]).sum() / (1 - mask[0]).sum(), 0]
    np.testing.assert_allclose(losses.inside, inside, rtol=1e-5)
    np.testing.assert_allclose(losses.outside, outside, rtol=1e-5)
    reduced = reduce_losses(losses, rows, LossSpec("epsilon", outside_mask_weight=2.0))
    np.testing.assert_allclose(reduced.total, inside.mean() + 2 * np.mean(outside), rtol=1e-5)


# The weight anchor


def flat_lora(rng, spec):
    """Adapters of a linear layer and of a convolution, away from their start, and the kernels."""
    kernels = {"a.kernel": rng.normal(size=(8, 5)), "b.kernel": rng.normal(size=(3, 3, 4, 12))}
    network = ModuleDef(None, {}, {name: jax.ShapeDtypeStruct(kernel.shape, "f4") for name, kernel in kernels.items()})
    values = {}
    for name, leaf in lora_shapes(network, ["a", "b"], spec).items():
        values[name] = rng.normal(size=leaf.shape) * (0.1 if name.endswith("lora_B.kernel") else 0.6)
        if name.endswith(MAGNITUDE):
            kernel = kernels[name.replace(MAGNITUDE, "kernel")]
            norms = np.sqrt(np.square(kernel).sum(axis=tuple(range(kernel.ndim - 1))))
            values[name] = norms * rng.uniform(0.9, 1.1, leaf.shape)
    return kernels, values


@pytest.mark.parametrize("kind", KINDS)
def test_the_anchor_of_a_lora_is_the_squared_norm_of_what_merging_adds(kind, rng):
    spec = LoraSpec(rank=2, scale=0.7, kind=kind, factor=2)
    kernels, values = flat_lora(rng, spec)
    with jax.enable_x64(True):
        merged = merge({name: jnp.asarray(value, jnp.float32) for name, value in (kernels | values).items()}, spec)
        expected = sum(np.square(np.asarray(merged[name], np.float64) - kernels[name]).sum() for name in kernels)
    params = {f"unet.{name}": jnp.asarray(value, jnp.float32) for name, value in values.items()}
    frozen = {"unet": {name: jnp.asarray(value, jnp.float32) for name, value in kernels.items()}}
    np.testing.assert_allclose(float(squared_change(params, frozen, spec)), expected, rtol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_anchors_gradient_is_that_of_finite_differences(kind, rng):
    spec = LoraSpec(rank=2, scale=0.7, kind=kind, factor=2)
    kernels, values = flat_lora(rng, spec)
    params = {f"unet.{name}": jnp.asarray(value, jnp.float32) for name, value in values.items()}
    frozen = {"unet": {name: jnp.asarray(value, jnp.float32) for name, value in kernels.items()}}
    grads = jax.grad(squared_change)(params, frozen, spec)
    for name, value in params.items():
        direction = rng.normal(size=value.shape).astype(np.float32)
        ends = [squared_change(params | {name: value + h * direction}, frozen, spec) for h in (1e-2, -1e-2)]
        slope = (float(ends[0]) - float(ends[1])) / 2e-2
        np.testing.assert_allclose(float(jnp.sum(grads[name] * direction)), slope, rtol=5e-3, atol=1e-3, err_msg=name)


def test_the_anchor_of_whole_components_is_twice_the_change(rng):
    params = {"unet.a.kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}
    frozen = {ANCHOR: {"unet.a.kernel": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)}}
    value, grads = jax.value_and_grad(squared_change)(params, frozen, None)
    change = np.asarray(params["unet.a.kernel"], np.float64) - np.asarray(frozen[ANCHOR]["unet.a.kernel"], np.float64)
    np.testing.assert_allclose(float(value), np.square(change).sum(), rtol=1e-6)
    np.testing.assert_allclose(grads["unet.a.kernel"], 2 * change, rtol=1e-6)


def test_the_anchor_enters_loss_and_gradient_with_its_weight(micro, micro_params, mesh):
    settings = prior("weight-anchor", weight_anchor_weight=3.0)
    spec, state, frozen, _, _ = setup(micro, micro_params, mesh, (1, 0), prior=settings, lora=LORA)
    params = move(state.params)
    change, pull = jax.value_and_grad(squared_change)(params, frozen, spec.base.lora)
    without = Losses(jnp.float32(0.5), {"instance_loss": jnp.float32(0.5)})
    losses, grads = with_weight_anchor(spec, without, dict.fromkeys(params, jnp.float32(1.0)), params, frozen)
    np.testing.assert_allclose(losses.total, 0.5 + 3 * change, rtol=1e-6)
    np.testing.assert_allclose(losses.terms["weight_anchor"], change, rtol=1e-6)
    for name, value in pull.items():
        np.testing.assert_allclose(grads[name], 1 + 3 * value, rtol=1e-5, err_msg=name)


def distance_after(made, steps=60):
    """How far any exported weight has moved."""
    spec, state, frozen, source, key = made
    before = merged(spec, state, frozen)
    after = merged(spec, make_dispatch(spec, steps, state)(state, frozen, source, key, np.int32(steps))[0], frozen)
    return max(np.abs(after[name] - before[name]).max() for name in before)


RATE = 1e-7  # with Adam a huge anchor lets weights swing by about one rate


@pytest.mark.parametrize(
    "lora", [{}, pytest.param(LORA | {"kind": "dora"}, marks=pytest.mark.slow)], ids=["full", "dora"]
)
def test_a_huge_anchor_holds_every_exported_weight(lora, micro, micro_params, mesh):
    settings = prior("weight-anchor", weight_anchor_weight=1e6)
    assert (
        distance_after(setup(micro, micro_params, mesh, (1, 0), prior=settings, lora=lora, learning_rate=RATE)) < 1e-6
    )


def test_without_the_anchor_the_weights_leave(micro, micro_params, mesh):
    assert distance_after(setup(micro, micro_params, mesh, (1, 0), prior=prior("none"), learning_rate=RATE)) > 3e-6


def merged(spec, state, frozen):
    """The denoiser's weights with adapters merged, as they are exported."""
    params = join({"unet": frozen.get("unet", {})}, result_params(state))["unet"]
    values = merge(params, spec.base.lora) if spec.base.lora else params
    return {name: np.array(value, np.float32) for name, value in values.items()}
