"""Models with a quantized base: loading, output, gradients of adapters, and which runs may have one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.config.rules import check_quantization
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import MAGNITUDE, LoraSpec
from jaxbooth.models.lora import init_lora, lora_shapes, with_adapters
from jaxbooth.models.lora_targets import target_layers
from jaxbooth.models.low_rank import LORA_A, LORA_B
from jaxbooth.models.quantization import QUANTIZATIONS, quantized_kernels, stored_shapes
from jaxbooth.params import KERNEL_SCALE
from jaxbooth.sharding import make_mesh
from jaxbooth.training.weight_anchor import squared_change
from tests.quantized import dequantize_params, quantize_params

KINDS = [name if name == "int8" else pytest.param(name, marks=pytest.mark.slow) for name in QUANTIZATIONS[1:]]
PAIRS = [
    ("int8", "lora"), ("nf4", "dora"),
    *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [("int8", "loha"), ("int8", "lokr"), ("nf4", "lora")]),
]  # fmt: skip
# Of the output of a small random model, root mean square, as a share of the output's.
BOUNDS = {"int8": 0.02, "fp8": 0.06, "int4": 0.25, "nf4": 0.22}


def rms(values):
    return float(np.sqrt(np.mean(np.square(np.asarray(values, np.float64)))))


def inputs(base, rng):
    sample = rng.normal(size=(2, 16, 16, 4)).astype(np.float32)
    return sample, jnp.array([10, 700]), rng.normal(size=(2, 5, base.denoiser_config.cross_attention_dim)).astype("f4")


def output(network, params, call):
    return jax.jit(lambda params: network.bind(params)(*call))(params)


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_of_a_unet_changes_as_much_as_its_kind_is_inexact(kind, micro, micro_params, rng):
    call = inputs(micro, rng)
    exact = output(micro.denoiser, micro_params["unet"], call)
    quantized = quantize_params(micro.denoiser, micro_params["unet"], kind)
    found = output(micro.denoiser, quantized, call)
    assert 0 < rms(found - exact) / rms(exact) < BOUNDS[kind]
    same = output(micro.denoiser, dequantize_params(quantized), call)
    np.testing.assert_allclose(found, same, atol=1e-5 * np.abs(same).max())


@pytest.mark.parametrize(("kind", "adapter"), PAIRS)
def test_adapters_have_the_gradients_that_they_have_on_the_kernels_that_the_codes_stand_for(
    kind, adapter, micro, micro_params, rng
):
    lora = LoraSpec(4, 0.5, adapter)
    network = with_adapters(micro.denoiser, lora)
    frozen = quantize_params(micro.denoiser, micro_params["unet"], kind)
    shapes = lora_shapes(micro.denoiser, target_layers(micro.denoiser, "unet", "attention+ff+conv"), lora)
    adapters = {
        name: value + 0.1 * rng.normal(size=value.shape).astype("f4")
        for name, value in init_lora(frozen, shapes, 0, lora).items()
    }
    call = inputs(micro, rng)

    def gradients(params):
        loss = lambda values: jnp.mean(jnp.square(network.bind(params | values)(*call)))  # noqa: E731
        return jax.jit(jax.grad(loss))(adapters)

    found, expected = gradients(frozen), gradients(dequantize_params(frozen))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4 * np.abs(value).max(), err_msg=name)


def test_doras_magnitudes_start_as_the_norms_of_what_the_codes_stand_for(micro, micro_params):
    frozen = quantize_params(micro.denoiser, micro_params["unet"], "int4")
    layer = next(name for name in quantized_kernels(micro.denoiser.shapes, "int4")).removesuffix(".kernel")
    name = f"{layer}.{MAGNITUDE}"
    lora = LoraSpec(2, 1.0, "dora")
    shapes = lora_shapes(micro.denoiser, [layer], lora)
    magnitude = init_lora(frozen, shapes, 0, lora)[name]
    kernel = dequantize_params(frozen)[f"{layer}.kernel"]
    np.testing.assert_allclose(magnitude, np.sqrt((kernel.reshape(-1, kernel.shape[-1]) ** 2).sum(axis=0)), rtol=1e-5)


def test_the_weight_anchor_of_dora_measures_from_what_the_codes_stand_for(micro, micro_params, rng):
    lora = LoraSpec(2, 1.0, "dora")
    frozen = quantize_params(micro.denoiser, micro_params["unet"], "int4")
    layer = next(name for name in quantized_kernels(micro.denoiser.shapes, "int4")).removesuffix(".kernel")
    adapters = init_lora(frozen, lora_shapes(micro.denoiser, [layer], lora), 0, lora)
    adapters[f"{layer}.{LORA_B}"] += 0.1
    params = {f"unet.{name}": value for name, value in adapters.items()}
    found = squared_change(params, {"unet": frozen}, lora)
    np.testing.assert_allclose(found, squared_change(params, {"unet": dequantize_params(frozen)}, lora), rtol=1e-5)
    assert float(squared_change({**params, f"unet.{layer}.{LORA_A}": 0 * params[f"unet.{layer}.{LORA_A}"]},
                                {"unet": frozen}, lora)) == pytest.approx(0, abs=1e-6)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_loading_quantizes_what_is_frozen_and_announces_its_shapes(kind, base, params):
    small = base.with_quantization(kind)
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    loaded = load_params(small, mesh, components=("unet", "vae", "text_encoder"))
    assert not [name for name in loaded["vae"] if name.endswith(KERNEL_SCALE)]
    for component in ("unet", "text_encoder"):
        shapes = stored_shapes(base.module(component).shapes, kind, base.dtype)
        found = {name: (value.shape, value.dtype) for name, value in loaded[component].items()}
        assert found == {name: (leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        expected = quantize_params(base.module(component), params[component], kind)
        assert set(expected) == set(found)
        name = quantized_kernels(base.module(component).shapes, kind)[-1]
        np.testing.assert_array_equal(np.asarray(loaded[component][name]).view(np.uint8), expected[name].view(np.uint8))


def test_what_is_trained_as_a_whole_is_loaded_as_it_is(base, mesh):
    loaded = load_params(base.with_quantization("int8"), mesh, trained=("unet",), components=("unet",))
    assert {value.dtype for value in loaded["unet"].values()} == {np.dtype(np.float32)}


def test_a_model_knows_what_its_components_are_held_in(base: BaseModel):
    small = base.with_quantization("nf4")
    assert [small.quantization_of(name) for name in ("unet", "vae", "text_encoder")] == ["nf4", "none", "nf4"]


def test_quantizing_what_is_trained_is_refused():
    config = Config(model_quantization="int8")
    with pytest.raises(
        UserError, match=r"--model-quantization int8 is for frozen weights.*set --lora.rank, such as 16"
    ):
        check_quantization(config)
    check_quantization(Config.model_validate({"model_quantization": "int8", "lora": {"rank": 4}}))
    check_quantization(
        Config.model_validate(
            {
                "model_quantization": "nf4",
                "text": {"placeholder_tokens": ["<sks>"], "token_training": "textual-inversion"},
            }
        )
    )
