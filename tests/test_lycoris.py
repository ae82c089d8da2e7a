"""LoHa and LoKr: the formulas of LyCORIS (arXiv 2309.14859), layer by layer, and that they learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxbooth.base.adapters import check_adapters
from jaxbooth.base.trainable import add_trainable
from jaxbooth.config.load import load_config
from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import KINDS, LoraSpec
from jaxbooth.models.attention import GEGLU
from jaxbooth.models.layers import Layers
from jaxbooth.models.lokr import NEAREST, factorize
from jaxbooth.models.lora import lora_shapes, merge, with_adapters
from jaxbooth.params import abstract_module
from jaxbooth.training.step import gradients
from jaxbooth.weights.names import export_array
from tests.training import configure, run, setup

LAYERS = {
    "linear": lambda layers: layers.linear(24, 36),
    "pointwise": lambda layers: layers.conv(24, 36, size=1),
    "conv": lambda layers: layers.conv(24, 36, size=3, stride=2),
}
SPECS = {
    "loha": LoraSpec(3, 0.5, "loha"),
    "lokr": LoraSpec(2, 0.5, "lokr"),
    "lokr-factor": LoraSpec(2, 0.5, "lokr", 3),
    "lokr-whole": LoraSpec(16, 0.5, "lokr"),
}


class Holder(nnx.Module):
    """A network of one layer."""

    def __init__(self, build, layers):
        self.layer = build(layers)

    def __call__(self, x):
        return self.layer(x)


def network(layer):
    return abstract_module(lambda rngs: Holder(LAYERS[layer], Layers(rngs)))


def random_params(module, spec, rng, slots=()):
    params = {name: rng.normal(size=leaf.shape) for name, leaf in module.shapes.items()}
    adapters = {
        name: rng.normal(size=(*slots, *leaf.shape)) for name, leaf in lora_shapes(module, ["layer"], spec).items()
    }
    return {name: np.asarray(value, np.float32) for name, value in (params | adapters).items()}


def lycoris_change(params, scale):
    """What LyCORIS adds to a weight (out, in, ...): `functional/loha.py` and `functional/lokr.py`, in float64."""
    stored = {
        name.split(".")[1]: export_array(name, value).astype(np.float64)
        for name, value in params.items()
        if name.endswith(".kernel") and name != "layer.kernel"
    }
    if "hada_w1_a" in stored:
        first, second = (np.tensordot(stored[f"hada_w{i}_a"].reshape(-1, 3), stored[f"hada_w{i}_b"], 1) for i in (1, 2))
        return scale * first * second
    w1, whole = stored["lokr_w1"], "lokr_w2" in stored
    w2 = stored["lokr_w2"] if whole else np.tensordot(stored["lokr_w2_a"].reshape(-1, 2), stored["lokr_w2_b"], 1)
    return (1 if whole else scale) * np.kron(w1.reshape(*w1.shape, *(1 for _ in w2.shape[2:])), w2)


def in_torch(layer, params, change, x):
    """The layer with its changed weight, in float64."""
    weight = torch.from_numpy(export_array("layer.kernel", params["layer.kernel"]).astype(np.float64) + change)
    bias = torch.from_numpy(params["layer.bias"].astype(np.float64))
    rows = torch.from_numpy(x.astype(np.float64))
    if layer == "linear":
        return torch.nn.functional.linear(rows, weight, bias).numpy()
    stride, padding = (2, 1) if layer == "conv" else (1, 0)
    y = torch.nn.functional.conv2d(rows.permute(0, 3, 1, 2), weight, bias, stride, padding)
    return y.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", SPECS)
def test_a_layer_computes_what_lycoris_does(name, layer, rng):
    module, spec = network(layer), SPECS[name]
    params = random_params(module, spec, rng)
    x = rng.normal(size=(2, 6, 6, 24)).astype(np.float32)
    found = with_adapters(module, spec).bind(params)(x)
    expected = in_torch(layer, params, lycoris_change(params, spec.scale), x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    merged = module.bind(merge(params, spec))(x)
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", SPECS)
def test_gradients_flow_into_every_factor(name, layer, rng):
    module, spec = network(layer), SPECS[name]
    params = random_params(module, spec, rng)
    x, y = (rng.normal(size=(2, 6, 6, width)).astype(np.float32) for width in (24, 36))

    def loss(params, adapted):
        found = (with_adapters(module, spec).bind(params) if adapted else module.bind(merge(params, spec)))(x)
        return jnp.mean(jnp.square(found - y[:, : found.shape[1], : found.shape[2]]))

    beside, merged = (jax.grad(loss)(params, adapted) for adapted in (True, False))
    for leaf in lora_shapes(module, ["layer"], spec):
        assert np.abs(beside[leaf]).max() > 0
        np.testing.assert_allclose(beside[leaf], merged[leaf], rtol=0, atol=1e-4 * np.abs(merged[leaf]).max())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", ["lokr", "lokr-whole"])
def test_each_slot_has_its_own_lokr(name, layer, rng):
    module, spec = network(layer), SPECS[name]
    params = random_params(module, spec, rng, slots=(3,))
    x = rng.normal(size=(6, 6, 6, 24)).astype(np.float32)
    together = with_adapters(module, spec).bind(params)(x)
    for slot in range(3):
        own = {leaf: value if leaf in module.shapes else value[slot] for leaf, value in params.items()}
        rows = slice(2 * slot, 2 * slot + 2)
        alone = with_adapters(module, spec).bind(own)(x[rows])
        np.testing.assert_allclose(together[rows], alone, rtol=0, atol=1e-5 * np.abs(alone).max())


@pytest.mark.parametrize(("kind", "factor"), [("loha", NEAREST), ("lokr", NEAREST), ("lokr", 5)])
def test_a_gated_projection_is_halved_with_its_adapter(kind, factor, rng):
    # 40 outputs are 5 groups of 8, so that a half has no whole number of groups.
    module = abstract_module(lambda rngs: GEGLU(12, 20, Layers(rngs)))
    spec = LoraSpec(2, 0.5, kind, factor)
    params = {name: rng.normal(size=leaf.shape) for name, leaf in module.shapes.items()}
    params |= {name: rng.normal(size=leaf.shape) for name, leaf in lora_shapes(module, ["proj"], spec).items()}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    x = rng.normal(size=(2, 3, 12)).astype(np.float32)
    beside = with_adapters(module, spec).bind(params)(x)
    merged = module.bind(merge(params, spec))(x)
    np.testing.assert_allclose(beside, merged, rtol=0, atol=1e-5 * np.abs(merged).max())


@pytest.mark.parametrize(("size", "factor", "pair"), [
    (127, -1, (1, 127)), (128, -1, (8, 16)), (250, -1, (10, 25)), (360, -1, (18, 20)), (1024, -1, (32, 32)),
    (128, 4, (4, 32)), (250, 4, (2, 125)), (360, 16, (15, 24)), (512, 64, (8, 64)), (12, 5, (3, 4)),
])  # fmt: skip
def test_sizes_come_apart_as_in_lycoris(size, factor, pair):
    assert factorize(size, factor) == pair


def test_sizes_come_apart_as_in_peft():
    from peft.tuners.lokr.layer import factorization

    for size in (*range(1, 40), 320, 640, 768, 1280, 2048, 2560, 3072, 3840, 5120, 10240):
        assert factorize(size, NEAREST) == factorization(size, NEAREST)
        for factor in range(1, int(size**0.5) + 1):  # PEFT has a factor above the root first, and LyCORIS second
            assert factorize(size, factor) == factorization(size, factor)


def test_a_lokr_has_a_whole_second_factor_from_half_of_its_side_on():
    kernel = (64, 64)  # 8 groups of 8
    assert KINDS["lokr"].shapes(kernel, 3, NEAREST).keys() == {
        "lokr_w1.kernel", "lokr_w2_a.kernel", "lokr_w2_b.kernel",
    }  # fmt: skip
    assert KINDS["lokr"].shapes(kernel, 4, NEAREST) == {"lokr_w1.kernel": (8, 8), "lokr_w2.kernel": (8, 8)}


def test_a_lokr_has_far_fewer_parameters_than_a_lora():
    count = {
        kind: sum(np.prod(shape) for shape in KINDS[kind].shapes((1280, 1280), 16, 8).values())
        for kind in ("lora", "loha", "lokr")
    }
    assert count == {"lora": 40960, "loha": 81920, "lokr": 64 + 2 * 160 * 16}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_few_steps_lower_the_loss(kind, micro, micro_params, mesh):
    lora = {"rank": 4, "kind": kind, "targets": "attention+ff+conv"}
    spec, state, frozen, source, key = setup(micro, micro_params, mesh, (4, 2), lora=lora, learning_rate=1e-2, steps=20)
    loss = jax.jit(lambda params: gradients(spec, params, frozen, source, key, jnp.int32(0))[0].total)
    before = loss(state.params)
    state, _ = run(spec, state, frozen, source, key, [20], max_steps=20)
    assert loss(state.params) < 0.9 * before


# Configurations


def test_a_configuration_from_before_there_were_kinds_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("lora: {rank: 4, dora: true}\n")
    assert load_config(path).lora.kind == "dora"
    path.write_text("lora: {rank: 4, dora: false}\n")
    assert load_config(path).lora.kind == "lora"
    path.write_text("lora: {rank: 4, dora: perhaps}\n")
    with pytest.raises(UserError, match=r"unknown key 'lora.dora'; here it is lora.kind dora"):
        load_config(path)


@pytest.mark.parametrize(("lora", "message"), [
    ({"rank": 4, "kind": "lokr", "factor": 5}, r"--lora.factor 5 divides no side .* \(32, 128\)"),
    ({"rank": 4000, "kind": "loha"}, "--lora.rank 4000 is more than any adapted layer"),
])  # fmt: skip
def test_a_factor_or_rank_that_no_layer_has_is_refused(lora, message, micro):
    config = configure((2, 2), lora=lora)
    with pytest.raises(UserError, match=message):
        check_adapters(add_trainable(micro, config), config)


def test_a_lokr_may_have_a_rank_above_its_factors(micro):
    config = configure((2, 2), lora={"rank": 4000, "kind": "lokr"})
    check_adapters(add_trainable(micro, config), config)
