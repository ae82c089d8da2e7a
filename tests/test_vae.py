"""The autoencoders against PyTorch diffusers, on random small configurations and the demo's weights."""

from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.models.config import Flux2VAEConfig, VAEConfig, read_config
from jaxbooth.models.layers import Layers
from jaxbooth.models.vae import AutoencoderKL, scale_latents, unscale_latents
from jaxbooth.models.vae_flux2 import AutoencoderKLFlux2, patchify, unpatchify
from jaxbooth.params import ModuleDef, Params, abstract_module
from jaxbooth.weights.diffusers_read import load_component
from jaxbooth.weights.diffusers_write import ComponentTensors, save_component
from tests.torch_parity import TOLERANCE, from_torch, params_from_torch, relative_error, to_torch

VAE = {
    "block_out_channels": [16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "norm_num_groups": 8,
}
# What FLUX.1's and Z-Image's differ in.
WIDE = VAE | {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
}
FLUX2 = VAE | {"latent_channels": 6}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def check_vae(reference: diffusers.AutoencoderKL, rng: np.random.Generator) -> None:
    config = read_config(VAEConfig, dict(reference.config), "vae/config.json")
    network = abstract_module(lambda rngs: AutoencoderKL(config, Layers(rngs)))
    params = params_from_torch(reference, network)
    pixels = rng.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    latents = rng.normal(size=(2, 8, 8, config.latent_channels)).astype(np.float32)
    moments = jax.jit(lambda p: network.bind(p).encode(pixels))(params)
    decoded = jax.jit(lambda p: network.bind(p).decode(latents))(params)
    with torch.no_grad():
        posterior = reference.encode(to_torch(pixels)).latent_dist
        expected = reference.decode(to_torch(latents)).sample
    assert relative_error(moments.mean, from_torch(posterior.mean)) < TOLERANCE
    assert relative_error(moments.logvar, from_torch(posterior.logvar)) < TOLERANCE
    assert relative_error(decoded, from_torch(expected)) < TOLERANCE


@pytest.mark.parametrize("raw", [VAE, WIDE], ids=["sd", "16 channels, no quant convolutions"])
def test_random_vae_equals_diffusers(raw, rng):
    check_vae(diffusers.AutoencoderKL(**raw).eval(), rng)


def test_trained_vae_equals_diffusers(rng):
    check_vae(diffusers.AutoencoderKL.from_pretrained(DEMO_MODEL / "vae", torch_dtype=torch.float32), rng)


def test_latents_are_shifted_and_scaled_as_flow_pipelines_do_it(rng):
    config, latents = read_config(VAEConfig, WIDE, "vae/config.json"), rng.normal(size=(2, 3, 3, 16))
    np.testing.assert_allclose(scale_latents(config, latents), (latents - 0.1159) * 0.3611, rtol=1e-12)
    np.testing.assert_allclose(unscale_latents(config, latents), latents / 0.3611 + 0.1159, rtol=1e-12)


@pytest.mark.parametrize("config", [VAEConfig(), VAEConfig(shift_factor=0.0)], ids=["absent", "zero"])
def test_without_a_shift_latents_are_the_product_alone(config, rng):
    latents = rng.normal(size=(2, 3, 3, 4)).astype(np.float32)
    np.testing.assert_array_equal(scale_latents(config, latents), latents * np.float32(0.18215))
    np.testing.assert_array_equal(unscale_latents(config, latents), latents / np.float32(0.18215))


def flux2(rng: np.random.Generator, **raw: Any) -> tuple[diffusers.AutoencoderKLFlux2, ModuleDef, Params]:
    """Returns diffusers' module with statistics far from the initial ones, and ours with its parameters."""
    reference = diffusers.AutoencoderKLFlux2(**FLUX2 | raw).eval()
    reference.bn.running_mean.copy_(torch.tensor(rng.normal(size=24)))
    reference.bn.running_var.copy_(torch.tensor(rng.uniform(0.01, 4, 24)))
    config = read_config(Flux2VAEConfig, dict(reference.config), "vae/config.json")
    network = abstract_module(lambda rngs: AutoencoderKLFlux2(config, Layers(rngs)))
    return reference, network, params_from_torch(reference, network)


@pytest.mark.parametrize(
    "raw",
    [{}, {"decoder_block_out_channels": [8, 24, 40], "use_post_quant_conv": False}, {"batch_norm_eps": 0.1}],
    ids=["plain", "another decoder", "eps"],
)
def test_random_flux2_vae_equals_diffusers(raw, rng):
    reference, network, params = flux2(rng, **raw)
    pixels = rng.uniform(-1, 1, (2, 48, 32, 3)).astype(np.float32)
    latents = rng.normal(size=(2, 6, 4, 24)).astype(np.float32)
    moments = jax.jit(lambda p: network.bind(p).encode(pixels))(params)
    decoded = jax.jit(lambda p: network.bind(p).decode(latents))(params)
    mean, std = (x.view(1, -1, 1, 1) for x in (reference.bn.running_mean, bn_std(reference)))
    with torch.no_grad():
        posterior = reference.encode(to_torch(pixels)).latent_dist
        encoded = (Flux2KleinPipeline._patchify_latents(posterior.mean) - mean) / std
        deviation = Flux2KleinPipeline._patchify_latents(posterior.std) / std
        expected = reference.decode(Flux2KleinPipeline._unpatchify_latents(to_torch(latents) * std + mean)).sample
    assert relative_error(moments.mean, from_torch(encoded)) < TOLERANCE
    assert relative_error(np.exp(0.5 * moments.logvar), from_torch(deviation)) < TOLERANCE
    assert relative_error(decoded, from_torch(expected)) < TOLERANCE


def bn_std(reference: diffusers.AutoencoderKLFlux2) -> torch.Tensor:
    """The standard deviation as `Flux2KleinPipeline` takes it."""
    return torch.sqrt(reference.bn.running_var + reference.config.batch_norm_eps)


def test_an_image_comes_back_as_through_the_pipelines_own_functions(rng):
    reference, network, params = flux2(rng)
    pixels = rng.uniform(-1, 1, (1, 32, 32, 3)).astype(np.float32)

    def round_trip(params: Params) -> jax.Array:
        model = network.bind(params)
        return model.decode(model.encode(pixels).mean)

    with torch.no_grad():
        expected = reference.decode(reference.encode(to_torch(pixels)).latent_dist.mean).sample
    assert relative_error(jax.jit(round_trip)(params), from_torch(expected)) < TOLERANCE


def test_a_flux2_folder_goes_in_and_out_byte_for_byte_with_its_count_of_batches(tmp_path, rng):
    reference, network, _ = flux2(rng)
    reference.bn.num_batches_tracked.fill_(7)  # int64, which no parameter may be
    reference.save_pretrained(tmp_path / "vae")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = load_component(tmp_path / "vae", network, lambda name, shape: device, np.float32)
    (tmp_path / "out").mkdir()
    save_component(ComponentTensors(tmp_path / "vae", params), tmp_path / "out")
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / weights).read_bytes() == (tmp_path / "vae" / weights).read_bytes()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_patches_come_apart_again(size, rng):
    latents = rng.normal(size=(2, 6, 12, 5))
    patches = patchify(latents, size)
    assert patches.shape == (2, 6 // size, 12 // size, 5 * size**2)
    np.testing.assert_array_equal(unpatchify(patches, size), latents)


def test_the_flux2_vae_speaks_of_what_the_denoiser_sees():
    config = Flux2VAEConfig()
    assert (config.latent_channels, config.decoded_channels, config.factor) == (128, 32, 16)
    latents = np.ones((1, 2, 2, 128))
    np.testing.assert_array_equal(scale_latents(config, latents), latents)
    np.testing.assert_array_equal(unscale_latents(config, latents), latents)
