"""Qwen3 against transformers: hidden states of random small models, and the published ones' names and shapes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

from jaxbooth.errors import UserError
from jaxbooth.models.config import read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.qwen3 import Qwen3Model
from jaxbooth.models.qwen3_config import Qwen3Config
from jaxbooth.params import ModuleDef, Params, abstract_module, full_precision
from jaxbooth.sharding import make_mesh, mesh_context, param_shardings, partition_spec
from jaxbooth.weights.diffusers_read import load_component
from jaxbooth.weights.diffusers_write import DTYPES, ComponentTensors, save_component
from jaxbooth.weights.names import canonical, torch_name, torch_shape
from tests.torch_parity import TOLERANCE, params_from_torch, relative_error

# Heads that are no parts of the width, grouped or not; odd widths; a steep base of the positions.
CONFIGS: dict[str, dict[str, Any]] = {
    "grouped": {"hidden_size": 23, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10},
    "ungrouped": {"hidden_size": 40, "num_attention_heads": 3, "num_key_value_heads": None, "head_dim": 6},
    "one key head": {"hidden_size": 17, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8,
                     "attention_bias": True, "rms_norm_eps": 1e-3},
}  # fmt: skip
COMMON = {"vocab_size": 50, "intermediate_size": 37, "num_hidden_layers": 3, "max_position_embeddings": 64,
          "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}  # fmt: skip
# https://huggingface.co/Qwen/Qwen3-4B and -8B, config.json: Z-Image's and klein 4B's text encoder, and klein 9B's
QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560, "initializer_range": 0.02,
    "intermediate_size": 9728, "max_position_embeddings": 40960, "max_window_layers": 36, "model_type": "qwen3",
    "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "tie_word_embeddings": True,
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
    "vocab_size": 151936,
}  # fmt: skip
QWEN3_8B = QWEN3_4B | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
PUBLISHED = {"4b": (QWEN3_4B, 4_022_468_096), "8b": (QWEN3_8B, 7_568_405_504)}


def in_torch(seed: int = 0, kind: type = transformers.Qwen3Model, **config: Any) -> Any:
    """A random model whose norms and biases are not the neutral ones, and whose embeddings are large."""
    torch.manual_seed(seed)
    model = kind(transformers.Qwen3Config(**COMMON, **config)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                value.add_(0.3 * torch.randn_like(value))
            elif "embed" not in name:
                value.mul_(5)  # 0.02 is transformers' own scale, at which layers hardly change their input
        model.get_input_embeddings().weight.mul_(50)
    return model


def in_jaxbooth(model: Any, dtype: Any = jnp.float32) -> tuple[ModuleDef, Params]:
    config = read_config(Qwen3Config, model.config.to_dict(), "config.json")
    module = abstract_module(lambda rngs: Qwen3Model(config, Layers(rngs, dtype)))
    return module, params_from_torch(model, module)


def states_of(model: Any, ids: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """All hidden states of transformers, where padding comes last."""
    mask = np.arange(ids.shape[1]) < lengths[:, None]
    with torch.no_grad():
        output = model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long(), output_hidden_states=True)
    return [state.numpy() for state in output.hidden_states]


def tokens(rng: np.random.Generator, lengths: list[int], longest: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, COMMON["vocab_size"], (len(lengths), longest)), np.array(lengths)


def run(module: ModuleDef, params: Params, ids: np.ndarray, lengths: np.ndarray, layers: tuple[int, ...]) -> list:
    with full_precision():
        program = jax.jit(lambda params, ids, lengths: module.bind(params)(ids, lengths, layers))
        return program(params, ids.astype(np.int32), lengths.astype(np.int32))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("lengths", "longest"), [([9], 9), ([3, 11, 1], 13)], ids=["whole", "padded"])
def test_every_hidden_state_is_transformers(rng, name, lengths, longest):
    model = in_torch(**CONFIGS[name])
    ids, counts = tokens(rng, lengths, longest)
    expected = states_of(model, ids, counts)
    found = run(*in_jaxbooth(model), ids, counts, (0, 1, 2, 3))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert relative_error(ours, theirs) < TOLERANCE
    assert np.abs(expected[2] - expected[1]).max() > 0.1 * np.abs(expected[1]).max()


def test_indices_count_from_either_end_and_only_the_last_state_is_normalised(rng):
    module, params = in_jaxbooth(in_torch(**CONFIGS["grouped"]))
    ids, counts = tokens(rng, [5, 7], 7)
    states = run(module, params, ids, counts, (0, 1, 2, 3))
    for index, state in zip((-2, -1, -4), run(module, params, ids, counts, (-2, -1, -4)), strict=True):
        np.testing.assert_array_equal(state, states[index])
    scaled = run(module, params | {"norm.scale": 2 * params["norm.scale"]}, ids, counts, (2, 3))
    np.testing.assert_array_equal(scaled[0], states[2])
    np.testing.assert_allclose(scaled[1], 2 * states[3], rtol=1e-6)


def test_layers_that_no_wanted_state_needs_are_not_run(rng):
    module, params = in_jaxbooth(in_torch(**CONFIGS["grouped"]))
    ids, counts = tokens(rng, [5], 5)
    spoilt = {
        name: value * (np.nan if name.startswith(("layers.2.", "norm.")) else 1) for name, value in params.items()
    }
    [state] = run(module, spoilt, ids, counts, (2,))
    np.testing.assert_array_equal(state, run(module, params, ids, counts, (2,))[0])


def test_padding_changes_nothing_before_it(rng):
    module, params = in_jaxbooth(in_torch(**CONFIGS["one key head"]))
    ids, _ = tokens(rng, [6], 6)
    padded = np.concatenate([ids, np.full((1, 5), 7)], axis=1)
    [alone] = run(module, params, ids, np.array([6]), (3,))
    [found] = run(module, params, padded, np.array([6]), (3,))
    assert relative_error(found[:, :6], alone) < TOLERANCE


def test_in_bfloat16_it_is_as_close_as_transformers_is(rng):
    model = in_torch(**CONFIGS["grouped"])
    ids, counts = tokens(rng, [4, 12], 12)
    exact = states_of(model, ids, counts)[-1]
    module, params = in_jaxbooth(model, jnp.bfloat16)
    cast = {name: jnp.asarray(value, jnp.bfloat16 if value.ndim > 1 else None) for name, value in params.items()}
    [found] = run(module, cast, ids, counts, (-1,))
    assert found.dtype == jnp.float32
    mask = np.arange(12) < counts[:, None]
    theirs = model.to(torch.bfloat16)
    with torch.no_grad():
        theirs = theirs(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long()).last_hidden_state
    assert relative_error(found, exact) < max(0.03, relative_error(theirs.float().numpy(), exact))


@pytest.mark.parametrize("size", PUBLISHED)
def test_names_and_shapes_of_published_models_are_pytorchs(size):
    config, count = PUBLISHED[size]
    with torch.device("meta"):
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**config))
    theirs = {name: tuple(value.shape) for stored, value in model.state_dict().items() if (name := canonical(stored))}
    read = read_config(Qwen3Config, config, "config.json")
    module = abstract_module(lambda rngs: Qwen3Model(read, Layers(rngs)))
    assert {torch_name(name): torch_shape(name, leaf.shape) for name, leaf in module.shapes.items()} == theirs
    assert sum(leaf.size for leaf in module.shapes.values()) == count
    assert read.rope_base == 1_000_000


@pytest.mark.parametrize("kind", [transformers.Qwen3Model, transformers.Qwen3ForCausalLM])
@pytest.mark.parametrize("tie", [True, False])
def test_a_folder_of_either_class_is_read(tmp_path, mesh, rng, kind, tie):
    model = in_torch(kind=kind, tie_word_embeddings=tie, **CONFIGS["grouped"])
    model.save_pretrained(tmp_path)
    module, expected = in_jaxbooth(model.get_decoder() if kind is transformers.Qwen3ForCausalLM else model)
    found = load_component(tmp_path, module, param_shardings(mesh), np.float32)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("kind", [transformers.Qwen3Model, transformers.Qwen3ForCausalLM])
def test_a_written_folder_has_the_names_that_its_class_reads(tmp_path, kind):
    model = in_torch(kind=kind, **CONFIGS["ungrouped"])
    model.save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "out").mkdir()
    written = ComponentTensors(tmp_path / "text_encoder", {}, DTYPES["float16"])
    save_component(written, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = {name: value.half().numpy() for name, value in model.state_dict().items()}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, expected[name], strict=True)


def test_a_mesh_splits_projections_by_heads_and_gives_the_same_states(rng):
    model = in_torch(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    module, params = in_jaxbooth(model)
    ids, counts = tokens(rng, [3, 11, 5, 8], 11)
    [expected] = run(module, params, ids, counts, (-1,))
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    place = param_shardings(mesh)
    placed = {name: jax.device_put(value, place(name, value.shape)) for name, value in params.items()}
    with mesh_context(mesh):
        [found] = run(module, placed, ids, counts, (-1,))
    assert relative_error(found, np.asarray(expected)) < TOLERANCE
    specs = {name: tuple(partition_spec(name, (64, 64), mesh)) for name in params if name.startswith("layers.0.")}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        assert specs[f"layers.0.{name}.kernel"] == ("fsdp", "tensor")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert specs[f"layers.0.{name}.kernel"] == ("tensor", "fsdp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling has 'rope_type': 'yarn', and"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "rope_parameters has 'rope_type': 'linear'"),
        ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_parameters has 'rope_theta': '1e4'"),
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported"),
        ({"layer_types": ["sliding_attention"] * 36}, "layer_types"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 36 layers"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5 does not divide num_attention_heads 32"),
        ({"head_dim": 127}, "head_dim = 127 is not valid"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported"),
        ({"model_type": "qwen2"}, "model_type = 'qwen2' is not supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ],
)
def test_configurations_that_mean_another_model_are_refused(change, message):
    with pytest.raises(UserError, match=r"^text_encoder/config\.json") as error:
        read_config(Qwen3Config, QWEN3_4B | change, "text_encoder/config.json")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "rope", [{"rope_theta": 700}, {"rope_parameters": {"rope_theta": 700.0, "rope_type": "default"}}]
)
def test_the_base_of_positions_is_read_from_old_files_and_new_ones(rope):
    assert read_config(Qwen3Config, rope, "config.json").rope_base == 700
    assert (
        read_config(Qwen3Config, {}, "config.json").rope_base
        == transformers.Qwen3Config().rope_parameters["rope_theta"]
    )
