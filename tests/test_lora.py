"""Low-rank adapters: where they go, what they compute, and that they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import LYCORIS_KINDS, MAGNITUDE, LoraSpec, lora_spec
from jaxbooth.models.lora import init_lora, lora_shapes, merge, with_adapters
from jaxbooth.models.lora_targets import target_layers
from jaxbooth.models.low_rank import LORA_A, LORA_B
from tests.training import run, setup


def random_adapters(network, layers, lora, rng):
    """Adapters that change something: both factors random, magnitudes near one."""
    return {
        name: (rng.normal(size=leaf.shape) * 0.3 + (name.endswith(MAGNITUDE))).astype(np.float32)
        for name, leaf in lora_shapes(network, layers, lora).items()
    }


def inputs(base, rng):
    sample = rng.normal(size=(2, 16, 16, 4)).astype(np.float32)
    return sample, jnp.array([10, 700]), rng.normal(size=(2, 5, base.denoiser_config.cross_attention_dim)).astype("f4")


@pytest.mark.parametrize(("targets", "count"), [("attention", 8), ("attention+ff", 12), ("attention+ff+conv", 16)])
def test_presets_name_the_layers_of_each_kind(targets, count, micro):
    # In the middle: two attentions of four layers; two feed-forward, two projections; two resnets of two convolutions.
    layers = target_layers(micro.denoiser, "unet", targets)
    assert len([layer for layer in layers if layer.startswith("mid_block.")]) == count


def test_a_regex_must_match_the_whole_name_with_its_component(micro):
    assert target_layers(micro.denoiser, "unet", r"unet\.conv_in") == ["conv_in"]
    assert target_layers(micro.denoiser, "unet", r"conv_in") == []


def test_a_broken_regex_is_named(micro):
    with pytest.raises(
        UserError, match=r"--lora.targets \(no preset: attention, .*\) '\(' is not a regular expression"
    ):
        target_layers(micro.denoiser, "unet", "(")


@pytest.mark.parametrize(
    "kind", ["lora", "dora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LYCORIS_KINDS)]
)
@pytest.mark.parametrize("targets", ["attention", "attention+ff+conv"])
def test_beside_the_layer_equals_merged_into_it(targets, kind, micro, micro_params, rng):
    lora = LoraSpec(4, 0.5, kind)
    layers = target_layers(micro.denoiser, "unet", targets)
    params = micro_params["unet"] | random_adapters(micro.denoiser, layers, lora, rng)
    call = inputs(micro, rng)
    beside = jax.jit(lambda p: with_adapters(micro.denoiser, lora).bind(p)(*call))(params)
    merged = jax.jit(lambda p: micro.denoiser.bind(merge(p, lora))(*call))(params)
    plain = jax.jit(lambda p: micro.denoiser.bind(p)(*call))(micro_params["unet"])
    scale = np.abs(merged).max()
    np.testing.assert_allclose(beside, merged, atol=2e-5 * scale)  # float32 sums in another order
    assert np.abs(np.asarray(plain) - merged).max() > 0.05 * scale


@pytest.mark.parametrize(
    "kind", ["lora", "dora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LYCORIS_KINDS)]
)
def test_fresh_adapters_change_nothing(kind, micro, micro_params, rng):
    lora = LoraSpec(4, 1.0, kind)
    shapes = lora_shapes(micro.denoiser, target_layers(micro.denoiser, "unet", "attention+ff+conv"), lora)
    fresh = init_lora(micro_params["unet"], shapes, 0, lora)
    call = inputs(micro, rng)
    beside = jax.jit(lambda p: with_adapters(micro.denoiser, lora).bind(p)(*call))(micro_params["unet"] | fresh)
    plain = jax.jit(lambda p: micro.denoiser.bind(p)(*call))(micro_params["unet"])
    np.testing.assert_allclose(beside, plain, atol=2e-6 * np.abs(plain).max())


def test_alpha_defaults_to_the_rank_and_rslora_divides_by_its_root():
    assert lora_spec(16, None, rslora=False).scale == 1.0
    assert lora_spec(16, 8.0, rslora=False).scale == 0.5
    assert lora_spec(16, 8.0, rslora=True).scale == 2.0


def test_only_the_adapters_are_trained_and_kept(micro, micro_params, mesh):
    made = setup(micro, micro_params, mesh, (2, 2), lora={"rank": 4, "targets": "attention+ff"}, learning_rate=1e-3)
    frozen_before = jax.device_get(made.frozen)
    state, _ = run(*made, [3])
    assert all(name.endswith((LORA_A, LORA_B)) for name in state.params)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(made.frozen), frozen_before)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert size < 0.7 * sum(value.nbytes for value in micro_params["unet"].values())


@pytest.mark.parametrize(
    "kind", ["lora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("dora", *LYCORIS_KINDS))]
)
def test_every_adapter_moves(kind, micro, micro_params, mesh):
    lora = {"rank": 2, "kind": kind, "targets": "attention+ff+conv"}
    made = setup(micro, micro_params, mesh, (2, 2), lora=lora, text_encoder=True, learning_rate=1e-2)
    before = jax.device_get(made.state.params)
    state, _ = run(*made, [3])
    still = [name for name, value in state.params.items() if (np.asarray(value) == before[name]).all()]
    # The last position's text is never attended to differently, but every layer of it is on the way to the loss.
    assert still == []
