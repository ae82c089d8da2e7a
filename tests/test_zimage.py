"""Z-Image's transformer against diffusers' class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import LYCORIS_KINDS, lora_spec
from jaxbooth.models.config import read_config
from jaxbooth.models.lora import init_lora, lora_shapes, merge, with_adapters
from jaxbooth.models.lora_targets import target_layers
from jaxbooth.models.zimage_config import ZImageConfig
from jaxbooth.sharding import BATCH_AXES, make_mesh, mesh_context, param_shardings
from jaxbooth.weights.names import import_axes, torch_name
from tests.torch_parity import TOLERANCE, params_from_torch, relative_error
from tests.zimage import ODD, TINY, WIDE, in_diffusers, inputs, network, velocity

SHALLOW = TINY | {"n_layers": 1}


def outputs(raw, arrays, remat="none"):
    """The prediction here and in diffusers."""
    module, definition = in_diffusers(raw), network(raw)
    params = params_from_torch(module, definition)
    with torch.no_grad():
        expected = velocity(module, *map(torch.tensor, arrays)).numpy()
    return jax.jit(lambda params: definition.bind(params)(*arrays, remat=remat))(params), expected


@pytest.mark.parametrize(
    "raw",
    [
        TINY,
        ODD,
        WIDE,
        TINY | {"n_refiner_layers": 3, "qk_norm": False, "norm_eps": 1e-3, "t_scale": 100.0, "rope_theta": 100.0},
        TINY | {"n_kv_heads": 1},  # which diffusers' class does not look at
        TINY | {"all_patch_size": [1, 2], "all_f_patch_size": [1, 1]},
        TINY | {"all_patch_size": [4], "all_f_patch_size": [1]},
    ],
    ids=["tiny", "odd", "wide", "refined", "few key heads", "two patch sizes", "patches of four"],
)
def test_configurations_equal_diffusers(raw, rng):
    arrays = inputs(rng, raw, 8, 12, lengths=(7, 40), longest=64)
    found, expected = outputs(raw, arrays)
    assert found.dtype == jnp.float32
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.parametrize("length", [1, 31, 32, 33])
def test_captions_of_any_length_equal_diffusers(rng, length):
    found, expected = outputs(TINY, inputs(rng, TINY, 16, 6, lengths=(length,), longest=length))
    assert relative_error(found, expected) < TOLERANCE


def test_rows_of_different_lengths_equal_diffusers(rng):
    # 4, 32, 33 and 96 tokens are filled up to 32, 32, 64 and 96: the image stands at another place in each.
    found, expected = outputs(TINY, inputs(rng, TINY, 8, 16, lengths=(4, 32, 33, 96), longest=96))
    assert relative_error(found, expected) < TOLERANCE


def test_what_comes_after_a_caption_is_not_read(rng):
    definition = network(TINY)
    params = params_from_torch(in_diffusers(TINY), definition)
    sample, timesteps, prompts, lengths = inputs(rng, TINY, 8, 8, lengths=(5, 40), longest=64)
    run = jax.jit(lambda prompts: definition.bind(params)(sample, timesteps, prompts, lengths))
    other = prompts.copy()
    other[0, 5:], other[1, 40:] = 1e3, -1e3
    np.testing.assert_array_equal(run(prompts), run(other))


@pytest.mark.parametrize("remat", ["none", "dots", "blocks"])  # of transformers, "attention" keeps what "blocks" does
def test_gradients_equal_torchs(rng, remat):
    module, definition = in_diffusers(SHALLOW), network(SHALLOW)
    params = params_from_torch(module, definition)
    sample, timesteps, prompts, lengths = inputs(rng, SHALLOW, 8, 12, lengths=(7, 40), longest=64)
    weights = rng.normal(size=sample.shape).astype(np.float32)

    def loss(params, sample, prompts):
        return jnp.sum(definition.bind(params)(sample, timesteps, prompts, lengths, remat=remat) * weights)

    found = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, sample, prompts)
    leaves = [torch.tensor(sample, requires_grad=True), torch.tensor(prompts, requires_grad=True)]
    out = velocity(module, leaves[0], torch.tensor(timesteps), leaves[1], lengths)
    (out * torch.tensor(weights)).sum().backward()
    state = dict(module.named_parameters())
    for name, grad in found[0].items():
        expected = state[torch_name(name)].grad.numpy().transpose(import_axes(name, grad.ndim))
        assert relative_error(grad, expected) < 5 * TOLERANCE, name  # sums over tokens, then over rows
    for grad, leaf in zip(found[1:], leaves, strict=True):
        assert relative_error(grad, leaf.grad.numpy()) < 5 * TOLERANCE


def test_eight_devices_compute_what_one_does_and_activations_stay_where_their_rows_and_heads_are(rng):
    raw = SHALLOW | {"dim": 64, "n_heads": 4, "n_refiner_layers": 0}
    definition = network(raw)
    params = params_from_torch(in_diffusers(raw), definition)
    arrays = inputs(rng, raw, 8, 8, lengths=(7, 40, 64, 1), longest=64)

    def program(mesh):
        def loss(params, *arrays):
            with mesh_context(mesh):
                return jnp.sum(jnp.sin(definition.bind(params)(*arrays)))

        shardings = {name: param_shardings(mesh)(name, value.shape) for name, value in params.items()}
        rows = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        placed = jax.device_put(params, shardings), *jax.device_put(arrays, rows)
        return jax.jit(jax.value_and_grad(loss)).lower(*placed).compile(), placed

    one, values = program(make_mesh(devices=jax.devices()[:1]))
    many, parts = program(make_mesh(2, 2, 2))
    # Parameters are gathered, products of split inputs and gradients are summed.
    assert not [word for word in ("all-to-all", "collective-permute") if f"{word}(" in many.as_text()]
    loss, expected = one(*values)
    other_loss, found = many(*parts)
    assert abs(float(other_loss) - float(loss)) < 1e-3  # of 768 values
    for name, grad in found.items():
        assert relative_error(grad, expected[name]) < 5 * TOLERANCE, name


def test_bfloat16_is_near_float32(rng):
    raw = TINY | {"dim": 128, "axes_dims": [32, 16, 16]}
    params = params_from_torch(in_diffusers(raw), network(raw))
    arrays = inputs(rng, raw, 8, 8, lengths=(7, 40), longest=64)
    exact, rounded = (
        jax.jit(lambda params, dtype=dtype: network(raw, dtype).bind(params)(*arrays))(params)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.float32
    error = float(jnp.std(rounded - exact) / jnp.std(exact))
    assert 1e-4 < error < 0.03  # eight bits are 0.4 %


def test_sizes_and_captions_beyond_the_known_positions_are_refused(rng):
    definition = network(TINY)
    params = definition.shapes

    def trace(height, width, longest):
        arrays = inputs(rng, TINY, height, width, lengths=(1,), longest=longest)
        return jax.eval_shape(lambda params: definition.bind(params)(*arrays), params)

    trace(32, 32, 96)
    with pytest.raises(UserError, match=r"axes_lens \[128, 16, 16\] allows images of 16 x 16 tokens, and 34 x 32 lat"):
        trace(34, 32, 96)
    with pytest.raises(UserError, match=r"allows captions of 126 tokens, and this one has 128 when filled up"):
        trace(32, 32, 97)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"siglip_feat_dim": 1152}, "siglip_feat_dim = 1152 is not supported"),
        ({"axes_dims": [8, 4, 6]}, r"axes_dims \[8, 4, 6\] do not add up to a head's 16 channels"),
        ({"axes_dims": [7, 5, 4]}, r"axes_dims \[7, 5, 4\] are not all even"),
        ({"axes_dims": [8, 8]}, "axes_dims"),
        ({"all_f_patch_size": [2]}, "has no 1, which an image needs"),
        ({"all_patch_size": [2, 4]}, "all_f_patch_size has 1 entries for the 2 of all_patch_size"),
        ({"n_layers": 0}, "n_layers = 0 is not valid"),
        ({"qk_norm": "rms_norm"}, "qk_norm"),
    ],
)
def test_configurations_that_cannot_be_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=rf"^transformer/config\.json: .*{message}"):
        read_config(ZImageConfig, TINY | changes, "transformer/config.json")


def test_a_configuration_names_what_others_ask_of_it():
    config = read_config(ZImageConfig, TINY | {"_class_name": "ZImageTransformer2DModel", "siglip_feat_dim": None}, "")
    assert (config.in_channels, config.out_channels, config.text_width) == (3, 3, 20)
    assert (config.attention_heads, config.downsampling) == ({2}, 2)
    assert (config.native_size, config.sample_size) == (128, None)


@pytest.mark.parametrize(
    "kind", ["lora", "dora", *(pytest.param(kind, marks=pytest.mark.slow) for kind in LYCORIS_KINDS)]
)
def test_adapters_beside_any_layer_equal_those_merged_into_it(kind, rng):
    module, lora = network(TINY), lora_spec(3, 2.0, False, kind)
    layers = target_layers(module, "transformer", r"transformer\..*")
    assert {"all_x_embedder.2-1", "cap_embedder.1", "layers.1.feed_forward.w2"} < set(layers)
    params = params_from_torch(in_diffusers(TINY), module)
    adapters = init_lora(params, lora_shapes(module, layers, lora), 0, lora)
    params |= {name: value + 0.1 * rng.normal(size=value.shape).astype(np.float32) for name, value in adapters.items()}
    given = inputs(rng, TINY, 4, 6, (5, 3), 5)
    beside = jax.jit(lambda params: with_adapters(module, lora).bind(params)(*given))(params)
    merged = jax.jit(lambda params: module.bind(merge(params, lora))(*given))(params)
    np.testing.assert_allclose(beside, merged, rtol=0, atol=2e-5 * np.abs(merged).max())  # float32 sums
