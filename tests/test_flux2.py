"""FLUX.2's transformer against PyTorch diffusers, and over several devices."""

import json
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxbooth.assets import ASSETS
from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import LoraSpec, lora_spec
from jaxbooth.models.config import Flux2Config, Flux2VAEConfig, read_config
from jaxbooth.models.flux2 import Flux2Transformer2DModel
from jaxbooth.models.layers import Layers
from jaxbooth.models.lora import init_lora, lora_shapes, merge, with_adapters
from jaxbooth.models.remat import REMATS
from jaxbooth.models.vae_flux2 import AutoencoderKLFlux2
from jaxbooth.params import ModuleDef, Params, abstract_module
from jaxbooth.sharding import make_mesh, mesh_context, param_shardings
from jaxbooth.weights.names import torch_name, torch_shape
from tests.flux2 import SMALL, Inputs, definition, expected_output, in_torch, inputs, pair, reference
from tests.torch_parity import TOLERANCE, relative_error, to_torch

# Head counts, widths and depths that published models do not have.
UNUSUAL: dict[str, dict[str, Any]] = {
    "one layer of each": {},
    "two and three layers": {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 1},
    "single blocks alone": {"num_layers": 0, "num_single_layers": 2, "mlp_ratio": 2.3, "rope_theta": 77},
    "other outputs": {"out_channels": 7, "eps": 1e-3, "axes_dims_rope": [4, 4, 4, 4]},
}
SHAPES = [(5, 3, 1), (2, 7, 7), (1, 4, 32)]  # height, width, tokens of text


def run(network: ModuleDef, params: Params, given: Inputs, **options: Any) -> jax.Array:
    return jax.jit(lambda params: network.bind(params)(*given, **options))(params)


@pytest.mark.parametrize("changes", UNUSUAL.values(), ids=UNUSUAL)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_transformer_equals_diffusers(changes, shape, rng):
    module, network, params = pair(**changes)
    given = inputs(rng, *shape, **changes)
    assert relative_error(run(network, params, given), expected_output(module, given)) < TOLERANCE


def test_gradients_equal_diffusers(rng):
    module, network, params = pair(num_single_layers=2)
    given = inputs(rng, 3, 4, 7)
    target = rng.normal(size=(2, 3, 4, 12)).astype(np.float32)

    def loss(params: Params) -> jax.Array:
        return jnp.mean(jnp.square(network.bind(params)(*given) - target))

    found = jax.jit(jax.grad(loss))(params)
    torch.mean(torch.square(in_torch(module, given) - to_torch(target))).backward()
    expected = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    for name, gradient in found.items():
        stored = np.asarray(gradient).T if name.endswith("kernel") else gradient
        assert relative_error(stored, expected[torch_name(name)]) < 1e-4, name  # of values that are sums over tokens


@pytest.mark.parametrize("remat", REMATS[1:])
def test_remat_changes_neither_output_nor_gradients(remat, rng):
    _, network, params = pair()
    given = inputs(rng, 3, 4, 7)

    def loss(params: Params, remat: str) -> jax.Array:
        return jnp.mean(jnp.square(network.bind(params)(*given, remat=remat)))

    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (value, gradients), (expected_value, expected) = value_and_grad(params, remat), value_and_grad(params, "none")
    np.testing.assert_allclose(value, expected_value, rtol=1e-6)
    for name, gradient in gradients.items():
        assert relative_error(gradient, np.asarray(expected[name])) < 1e-5, name


def test_bfloat16_stays_near_float32_and_predicts_in_float32(rng):
    module, network, params = pair(num_single_layers=3)
    given = inputs(rng, 4, 4, 9)
    exact = np.asarray(run(network, params, given))
    rounded = run(definition(module, jnp.bfloat16), params, given)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < relative_error(rounded, exact) < 5e-2  # 8 bits of mantissa


def test_blocks_that_are_alike_are_traced_once():
    network = definition(reference(num_layers=3, num_single_layers=4))
    given = Inputs(np.zeros((1, 2, 2, 12), np.float32), np.zeros(1, np.float32), np.zeros((1, 3, 20), np.float32))
    program = jax.make_jaxpr(lambda params: network.bind(params)(*given))(network.shapes)
    calls = [equation for equation in program.eqns if equation.primitive.name in ("jit", "pjit")]
    blocks = [id(equation.params["jaxpr"]) for equation in calls if equation.params["name"] == "call"]
    assert len(blocks) == 7
    assert len(set(blocks)) == 2


WIDE = {"num_attention_heads": 4, "mlp_ratio": 2.5, "num_single_layers": 2}  # divisible by four devices


@pytest.fixture(scope="module")
def wide() -> tuple[torch.nn.Module, ModuleDef, Params]:
    return pair(**WIDE)


def sharded(network: ModuleDef, params: Params, mesh: jax.sharding.Mesh) -> Params:
    place = param_shardings(mesh)
    return {name: jax.device_put(value, place(name, value.shape)) for name, value in params.items()}


@pytest.mark.parametrize("sizes", [(1, 2, 4), (2, 2, 2)], ids=str)
def test_eight_devices_compute_what_one_does(sizes, wide, rng):
    module, network, params = wide
    given, mesh = inputs(rng, 3, 4, 7, batch=4), make_mesh(*sizes)

    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        with mesh_context(mesh):
            out = network.bind(params)(*given)
        return jnp.mean(jnp.square(out)), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(sharded(network, params, mesh))
    assert relative_error(out, expected_output(module, given)) < TOLERANCE
    alone = jax.jit(jax.grad(lambda params: jnp.mean(jnp.square(network.bind(params)(*given)))))(params)
    for name, gradient in gradients.items():
        assert relative_error(gradient, np.asarray(alone[name])) < 1e-4, name


def adapters(network: ModuleDef, params: Params, lora: LoraSpec, rng: np.random.Generator) -> Params:
    """Adapters of every layer of the blocks, with B and magnitudes other than the initial ones."""
    layers = [name.removesuffix(".kernel") for name in network.shapes if "blocks." in name and name.endswith(".kernel")]
    initial = init_lora(params, lora_shapes(network, layers, lora), 0, lora)
    return {
        name: value if "lora_A" in name else (value + 0.1 * rng.normal(size=value.shape)).astype(np.float32)
        for name, value in initial.items()
    }


@pytest.mark.parametrize("kind", ["lora", "dora", pytest.param("loha", marks=pytest.mark.slow)])
def test_adapters_of_fused_projections_equal_merged_kernels_over_several_devices(kind, wide, rng):
    _, network, params = wide
    given, mesh, lora = inputs(rng, 3, 4, 7, batch=4), make_mesh(1, 2, 4), lora_spec(5, 3.0, False, kind)
    adapted, adapters_of = with_adapters(network, lora), adapters(network, params, lora, rng)
    expected = np.asarray(run(network, merge(params | adapters_of, lora), given))

    def predict(params: Params) -> jax.Array:
        with mesh_context(mesh):
            return adapted.bind(params)(*given)

    assert relative_error(run(adapted, params | adapters_of, given), expected) < TOLERANCE
    assert relative_error(jax.jit(predict)(sharded(network, params | adapters_of, mesh)), expected) < TOLERANCE


def test_tensor_parallelism_moves_no_activations_within_a_block(wide, rng):
    _, network, params = wide
    given, mesh = inputs(rng, 3, 4, 7, batch=4), make_mesh(2, 1, 4)

    def predict(params: Params) -> jax.Array:
        with mesh_context(mesh):
            return network.bind(params)(*given)

    program = jax.jit(predict).lower(sharded(network, params, mesh)).compile().as_text()
    assert " all-to-all" not in program
    assert " collective-permute" not in program
    # Two streams twice in a double block, and once in each of two single blocks.
    assert program.count(" all-reduce(") + program.count(" all-reduce-start(") <= 4 + 2


def test_flux2_dev_is_refused_by_name():
    config = Flux2Config(**{**SMALL, "guidance_embeds": True})
    with pytest.raises(UserError, match=r"^transformer/config.json: guidance_embeds = true is FLUX.2 dev's, .* klein"):
        abstract_module(lambda rngs: Flux2Transformer2DModel(config, Layers(rngs)))


@pytest.mark.parametrize(("size", "count"), [("klein-4b", 3_875_544_576), ("klein-9b", 9_078_581_248)])
def test_names_and_shapes_of_published_transformers_are_pytorchs(size, count):
    raw = json.loads((ASSETS / "families" / size / "transformer" / "config.json").read_text())
    with torch.device("meta"):
        theirs = diffusers.Flux2Transformer2DModel.from_config(raw).state_dict()
    network = definition_of(raw)
    ours = {torch_name(name): torch_shape(name, leaf.shape) for name, leaf in network.shapes.items()}
    assert ours == {name: tuple(tensor.shape) for name, tensor in theirs.items()}
    assert sum(leaf.size for leaf in network.shapes.values()) == count


def definition_of(raw: dict[str, Any]) -> ModuleDef:
    config = read_config(Flux2Config, raw, "transformer/config.json")
    return abstract_module(lambda rngs: Flux2Transformer2DModel(config, Layers(rngs)))


@pytest.mark.parametrize("size", ["klein-4b", "klein-9b"])
def test_names_and_shapes_of_the_published_vae_are_pytorchs(size):
    raw = json.loads((ASSETS / "families" / size / "vae" / "config.json").read_text())
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKLFlux2.from_config(raw).state_dict()
    config = read_config(Flux2VAEConfig, raw, "vae/config.json")
    network = abstract_module(lambda rngs: AutoencoderKLFlux2(config, Layers(rngs)))
    ours = {torch_name(name): torch_shape(name, leaf.shape) for name, leaf in network.shapes.items()}
    assert ours == {name: tuple(tensor.shape) for name, tensor in theirs.items() if "num_batches" not in name}
    # The published file has 251 tensors: 84,046,115 parameters, and the statistics of 128 channels.
    assert sum(leaf.size for leaf in network.shapes.values()) == 84_046_115 + 2 * 128
    assert (config.latent_channels, config.factor) == (128, 16)
