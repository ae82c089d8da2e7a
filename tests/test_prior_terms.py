"""Terms that keep what the model knew: their gradients, where they are zero, and what they hold in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.diffusion.loss import Role
from jaxbooth.models.lora import LoraSpec, merge
from jaxbooth.params import join
from jaxbooth.sharding import make_mesh
from jaxbooth.training.batch import make_batch
from jaxbooth.training.layout import BatchLayout, RoleWeights, RowCounts, batch_layout, row_indices
from jaxbooth.training.reference import ANCHOR
from jaxbooth.training.state import result_params
from jaxbooth.training.step import gradients, make_dispatch, metric_names
from jaxbooth.training.weight_anchor import squared_change
from tests.training import CAPTIONS, CLASS_CAPTION, setup

DISTILLED = ["output-preservation", "blank-prompt"]
LORA = {"rank": 2, "targets": "attention+ff+conv"}


def prior(*methods, **settings):
    """Settings of the section `prior`."""
    return {"method": methods} | settings


def losses_and_gradients(made, step=3):
    spec, state, frozen, source, key = made
    arguments = (state.params, frozen, source, key, jnp.int32(step))
    return jax.jit(lambda *arguments: gradients(spec, *arguments))(*arguments)


def norm(values):
    return float(sum(np.abs(np.asarray(value)).max() for value in values.values()))


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


@pytest.mark.parametrize("lora", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("method", DISTILLED)
def test_a_model_that_has_not_moved_is_at_rest(method, lora, micro, micro_params, mesh):
    """With instance rows of weight 0 left out, loss and gradient of the method are exactly zero."""
    made = setup(micro, micro_params, mesh, (1, 3), prior=prior(method), lora=lora)
    weight = np.where(made.spec.layout.role == Role.INSTANCE, 0, made.spec.layout.weight).astype(np.float32)
    alone = made._replace(spec=replace_layout(made.spec, weight))
    losses, grads = losses_and_gradients(alone)
    assert float(losses.total) == 0
    assert norm(grads) == 0


def replace_layout(spec, weight):
    import dataclasses

    return dataclasses.replace(spec, layout=spec.layout._replace(weight=weight))


@pytest.mark.parametrize("method", DISTILLED)
def test_once_it_has_moved_the_term_pulls_it_back(method, micro, micro_params, mesh):
    made = setup(micro, micro_params, mesh, (1, 3), prior=prior(method), lora=LORA)
    moved = {name: value + 0.02 for name, value in made.state.params.items()}
    weight = np.where(made.spec.layout.role == Role.INSTANCE, 0, made.spec.layout.weight).astype(np.float32)
    made = made._replace(spec=replace_layout(made.spec, weight), state=made.state._replace(params=moved))
    losses, grads = losses_and_gradients(made)
    nearer = {name: value - 1e-3 * grads[name] / norm(grads) for name, value in moved.items()}
    less, _ = losses_and_gradients(made._replace(state=made.state._replace(params=nearer)))
    assert float(losses.total) > 0
    assert float(less.total) < float(losses.total)


def test_several_methods_add_up(micro, micro_params, mesh):
    """The total is the weighted sum of the terms that the metrics report."""
    settings = prior("class-images", *DISTILLED, weight=0.5, blank_prompt_weight=3.0)
    made = setup(micro, micro_params, mesh, (2, 2), prior=settings, lora=LORA)
    moved = {name: value + 0.02 for name, value in made.state.params.items()}
    losses, _ = losses_and_gradients(made._replace(state=made.state._replace(params=moved)))
    terms = {name: float(value) for name, value in losses.terms.items()}
    assert min(terms.values()) > 0
    expected = terms["instance_loss"] + 0.5 * (terms["prior_loss"] + terms["output_preservation_loss"])
    np.testing.assert_allclose(float(losses.total), expected + 3 * terms["blank_prompt_loss"], rtol=1e-6)


# The layout over devices and micro-batches does not matter


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_all_terms_are_the_same_on_several_devices(sizes, micro, micro_params, mesh):
    settings = {"prior": prior("class-images", *DISTILLED, "weight-anchor"), "data": {"masks": True}}
    settings |= {"loss": {"outside_mask": "frozen"}}
    one = step_losses(setup(micro, micro_params, mesh, (4, 4), **settings))
    many = step_losses(setup(micro, micro_params, make_mesh(*sizes, jax.devices()), (4, 4), **settings))
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def test_all_terms_are_the_same_in_micro_batches(micro, micro_params, mesh):
    settings = {"prior": prior("class-images", *DISTILLED, "weight-anchor"), "lora": LORA}
    one = step_losses(setup(micro, micro_params, mesh, (4, 4), **settings))
    split = step_losses(setup(micro, micro_params, mesh, (4, 4), gradient_accumulation_steps=2, **settings))
    for name, value in one.items():
        np.testing.assert_allclose(split[name], value, rtol=1e-5, atol=1e-7, err_msg=name)


def step_losses(made, steps=2):
    """Metrics of two steps."""
    spec, state, frozen, source, key = made
    dispatch = make_dispatch(spec, steps, state)
    _, metrics = dispatch(state, frozen, source, key, np.int32(steps))
    assert set(metrics) == set(metric_names(spec))
    return {name: np.asarray(value) for name, value in metrics.items()}


# Outside of the mask


def test_outside_of_the_mask_the_frozen_model_is_the_target(micro, micro_params, mesh):
    """A model that has not moved loses nothing there; inside, the loss is that without the term."""
    masked = {"data": {"masks": True}, "prior": prior("none"), "lora": LORA}
    plain = setup(micro, micro_params, mesh, (3, 0), **masked)
    kept = setup(micro, micro_params, mesh, (3, 0), loss={"outside_mask": "frozen"}, **masked)
    one, _ = losses_and_gradients(plain)
    two, _ = losses_and_gradients(kept)
    np.testing.assert_allclose(float(two.terms["outside_mask_loss"]), 0, atol=1e-12)
    np.testing.assert_allclose(float(two.total), float(one.total), rtol=1e-6)
    moved = {name: value + 0.02 for name, value in kept.state.params.items()}
    three, _ = losses_and_gradients(kept._replace(state=kept.state._replace(params=moved)))
    assert float(three.terms["outside_mask_loss"]) > 0


# The weight anchor


def flat_lora(rng, dora):
    """Adapters of a linear layer and of a convolution, away from their start, and the kernels."""
    kernels = {"a.kernel": rng.normal(size=(6, 5)), "b.kernel": rng.normal(size=(3, 3, 4, 7))}
    values = {}
    for name, kernel in kernels.items():
        layer = name.removesuffix(".kernel")
        *window, fan_in, fan_out = kernel.shape
        values[f"{layer}.lora_A.kernel"] = rng.normal(size=(*window, fan_in, 2))
        values[f"{layer}.lora_B.kernel"] = 0.1 * rng.normal(size=(*(1 for _ in window), 2, fan_out))
        if dora:
            norms = np.sqrt(np.square(kernel).sum(axis=tuple(range(kernel.ndim - 1))))
            values[f"{layer}.lora_magnitude_vector.scale"] = norms * rng.uniform(0.9, 1.1, fan_out)
    return kernels, values


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_anchor_of_a_lora_is_the_squared_norm_of_what_merging_adds(dora, rng):
    kernels, values = flat_lora(rng, dora)
    spec = LoraSpec(rank=2, scale=0.7, dora=dora)
    with jax.enable_x64(True):
        merged = merge({name: jnp.asarray(value, jnp.float32) for name, value in (kernels | values).items()}, spec)
        expected = sum(np.square(np.asarray(merged[name], np.float64) - kernels[name]).sum() for name in kernels)
    params = {f"unet.{name}": jnp.asarray(value, jnp.float32) for name, value in values.items()}
    frozen = {"unet": {name: jnp.asarray(value, jnp.float32) for name, value in kernels.items()}}
    np.testing.assert_allclose(float(squared_change(params, frozen, spec)), expected, rtol=2e-5)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_anchors_gradient_is_that_of_finite_differences(dora, rng):
    kernels, values = flat_lora(rng, dora)
    spec = LoraSpec(rank=2, scale=0.7, dora=dora)
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


def test_the_anchor_enters_a_steps_gradient_with_its_weight(micro, micro_params, mesh):
    """Two weights of the anchor tell its share apart: the difference of the updates' gradients is linear in it."""
    norms = []
    for weight in (0.0, 1.0, 3.0):
        method = ("class-images", "weight-anchor") if weight else ("class-images",)
        made = setup(micro, micro_params, mesh, (2, 2), prior=prior(*method, weight_anchor_weight=weight), lora=LORA)
        moved = {name: value + 0.02 for name, value in made.state.params.items()}
        metrics = step_losses(made._replace(state=made.state._replace(params=moved)), steps=1)
        norms.append(metrics["loss"][0])
        change = metrics.get("weight_anchor", [0])[0]
    np.testing.assert_allclose(norms[1] - norms[0], change, rtol=1e-4)
    np.testing.assert_allclose(norms[2] - norms[0], 3 * change, rtol=1e-4)


@pytest.mark.parametrize("lora", [{}, LORA, LORA | {"dora": True}], ids=["full", "lora", "dora"])
def test_a_huge_anchor_holds_every_weight(lora, micro, micro_params, mesh):
    """With Adam the weights swing within about one learning rate of the base model's; without it they leave."""
    moved = {}
    for weight in (0.0, 1e6):
        methods = ("class-images", "weight-anchor") if weight else ("class-images",)
        settings = prior(*methods, weight_anchor_weight=weight)
        made = setup(micro, micro_params, mesh, (1, 1), prior=settings, lora=lora, learning_rate=1e-7)
        spec, state, frozen, source, key = made
        before = merged(spec, state, frozen)
        dispatch = make_dispatch(spec, 60, state)
        after = merged(spec, dispatch(state, frozen, source, key, np.int32(60))[0], frozen)
        moved[weight] = max(np.abs(after[name] - before[name]).max() for name in before)
    assert moved[1e6] < 1e-6
    if not lora:
        assert moved[0.0] > 2e-6


def merged(spec, state, frozen):
    """The denoiser's weights with adapters merged, as they are exported."""
    params = join({"unet": frozen.get("unet", {})}, result_params(state))["unet"]
    values = merge(params, spec.base.lora) if spec.base.lora else params
    return {name: np.asarray(value, np.float32).copy() for name, value in values.items()}
