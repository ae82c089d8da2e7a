"""The loss on held-out images: what it is, and that neither the mesh nor the run's random choices change it."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxbooth.assets import DEMO_SUBJECT
from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.base.trainable import add_trainable
from jaxbooth.config.run_config import Config
from jaxbooth.params import full_precision
from jaxbooth.runs.held_out_loss import HeldOutLoss, named_means
from jaxbooth.runs.inputs import read_inputs
from jaxbooth.sharding import make_mesh
from jaxbooth.training.held_out_loss import (
    HeldOutImages,
    HeldOutSpec,
    bin_edges,
    bin_timesteps,
    device_rows,
    fixed_noise,
    held_out_losses,
)
from tests.training import random_text

PROMPTS = {"instance_prompt": "an emoji of a sks cat", "class_prompt": "an emoji of a cat"}
CLASS_LATENTS = np.random.default_rng(3).normal(size=(3, 16, 16, 4)).astype(np.float32)
TIMESTEPS = np.array([31, 468, 968, 31], np.int32)


def configure(model: Path, **settings) -> Config:
    """A run on the embedded cat that holds two of its five images out."""
    data = {"instance_dir": DEMO_SUBJECT, "hold_out": 2, "resolution": 64} | PROMPTS | settings.pop("data", {})
    return Config.model_validate({"model": str(model), "prior": {"weight": 0}} | settings | {"data": data})


def measure(config: Config, mesh, class_latents=CLASS_LATENTS, text_scale=1.0) -> dict[str, float]:
    """Reads a run's images and base model, and measures it, with the text encoder's last scale changed."""
    base = add_trainable(BaseModel.read(Path(config.model), "float32"), config)
    params = load_params(base, mesh)
    scale = "final_layer_norm.scale"
    params["text_encoder"] |= {scale: params["text_encoder"][scale] * text_scale}
    inputs = read_inputs(config, base)
    return HeldOutLoss(config, inputs, mesh, params["vae"])(params, class_latents)


def embeddings(base: BaseModel, rng) -> TextEmbeddings:
    """Random ones of four captions, on the device."""
    return jax.tree.map(jnp.asarray, random_text(base, rng))


def made_up_images(base: BaseModel) -> HeldOutImages:
    """Four images of 64 pixels, of two subjects and of the class."""
    rng = np.random.default_rng(5)
    return HeldOutImages(
        latents=rng.normal(size=(4, *base.latent_shape(64, 64))).astype(np.float32),
        time_ids=np.full((4, 6), 64, np.float32),
        caption=np.array([0, 1, 2, 1], np.int32),
        identity=np.array([(0, 0, 3), (0, 1, 3), (1, 0, 0), (0, 0, 4)], np.int32),
    )


def noise_of(identity: np.ndarray, timestep: int, shape: tuple[int, ...]) -> np.ndarray:
    """The standard normal values of JAX's key of 0, into which an image's identity and the timestep are folded."""
    key = jax.random.key(0, impl="threefry2x32")
    for number in (*identity.tolist(), timestep):
        key = jax.random.fold_in(key, number)
    return np.asarray(jax.random.normal(key, shape), np.float64)


def recomputed(base: BaseModel, params, text: TextEmbeddings, images: HeldOutImages) -> tuple[np.ndarray, np.ndarray]:
    """The network's mean squared errors of noise and of velocity in float64, each (4,); the network is in float32."""
    schedule, shape = base.schedule, images.latents.shape[1:]
    noise = np.stack([noise_of(who, int(t), shape) for who, t in zip(images.identity, TIMESTEPS, strict=True)])
    alpha, sigma = (table[TIMESTEPS][:, None, None, None] for table in (schedule.alphas, schedule.sigmas))
    noisy = jnp.asarray(alpha * images.latents + sigma * noise, jnp.float32)
    told = schedule.num_train_timesteps * schedule.sigmas[TIMESTEPS] if schedule.is_flow else TIMESTEPS
    captions = jax.tree.map(lambda column: jnp.asarray(column)[images.caption], text)
    conditions = base.denoiser_conditioning(captions, jnp.asarray(images.time_ids))
    with full_precision():
        run = jax.jit(lambda values: base.denoiser.bind(values)(noisy, jnp.asarray(told, jnp.float32), *conditions))
        output = np.asarray(run(params[base.denoiser_name]), np.float64)
    velocity = noise - images.latents.astype(np.float64)
    return np.square(output - noise).mean(axis=(1, 2, 3)), np.square(output - velocity).mean(axis=(1, 2, 3))


def found(base: BaseModel, params, text: TextEmbeddings, images: HeldOutImages, mesh, space) -> np.ndarray:
    """What jaxbooth computes of the same images."""
    spec = HeldOutSpec(base, mesh, space)
    program = jax.jit(lambda values, timesteps: held_out_losses(spec, values, text, images, timesteps))
    return np.asarray(program(params[base.denoiser_name], TIMESTEPS))


def test_it_is_the_squared_error_of_the_noise(micro, micro_params, mesh, rng):
    text = embeddings(micro, rng)
    images = made_up_images(micro)
    expected, _ = recomputed(micro, micro_params, text, images)
    np.testing.assert_allclose(found(micro, micro_params, text, images, mesh, "epsilon"), expected, rtol=1e-5)


def test_another_prediction_space_has_its_own_error(micro, micro_params, mesh, rng):
    text = embeddings(micro, rng)
    images = made_up_images(micro)
    of_noise, _ = recomputed(micro, micro_params, text, images)
    signal_to_noise = micro.schedule.alphas_cumprod[TIMESTEPS] / (1 - micro.schedule.alphas_cumprod[TIMESTEPS])
    of_images = found(micro, micro_params, text, images, mesh, "x0")
    np.testing.assert_allclose(of_images, of_noise / signal_to_noise, rtol=1e-4)


@pytest.mark.parametrize("shift", [None, 3.0])
def test_of_a_flow_model_it_is_that_of_the_velocity_at_the_shifted_timesteps(flow_model, mesh, rng, shift):
    base, params = flow_model("zimage")
    base = base.with_schedule(base.schedule.shifted(shift)) if shift else base
    text = embeddings(base, rng)
    images = made_up_images(base)
    _, expected = recomputed(base, params, text, images)
    np.testing.assert_allclose(found(base, params, text, images, mesh, "flow"), expected, rtol=1e-5)


def test_four_timesteps_are_in_the_middle_of_each_quarter_of_the_schedule():
    np.testing.assert_array_equal(bin_edges(1000), [0, 250, 500, 750, 1000])
    np.testing.assert_array_equal(bin_timesteps(1000)[0], [31, 93, 156, 218])
    np.testing.assert_array_equal(bin_timesteps(1000)[3], [781, 843, 906, 968])


@pytest.mark.parametrize("total", [1, 3, 10])
def test_a_short_schedule_has_timesteps_too(total):
    edges, timesteps = bin_edges(total), bin_timesteps(total)
    assert len(edges) == min(4, total) + 1
    assert (timesteps >= edges[:-1, None]).all()
    assert (timesteps < edges[1:, None]).all()


def test_every_image_and_timestep_has_noise_of_its_own(micro):
    images = made_up_images(micro)
    noise = np.asarray(fixed_noise(images, jnp.asarray(TIMESTEPS)))
    again = np.asarray(fixed_noise(images, jnp.full(4, 31)))
    np.testing.assert_array_equal(noise[0], again[0])
    everything = np.concatenate([noise, again[1:3]]).reshape(6, -1)
    assert np.abs(np.corrcoef(everything) - np.eye(6)).max() < 0.25


def test_the_means_are_those_of_all_images_and_of_each_bin():
    losses = np.arange(2 * 4 * 4, dtype=np.float32).reshape(2, 4, 4)
    assert named_means("loss", losses, 1000) == {
        "loss": 15.5, "loss_t0-249": 9.5, "loss_t250-499": 13.5, "loss_t500-749": 17.5, "loss_t750-999": 21.5,
    }  # fmt: skip


def test_large_images_go_one_by_one():
    assert [device_rows(side // 8, side // 8) for side in (64, 512, 768, 1024, 2048)] == [8, 4, 1, 1, 1]


@pytest.fixture(scope="module")
def on_one(micro_model, mesh):
    """The losses of the base model on one device."""
    return measure(configure(micro_model), mesh)


def test_subject_and_class_are_measured_in_all_and_in_bins(on_one):
    for group in ("subject", "class"):
        names = [f"validation/{group}_loss_t{low}-{low + 249}" for low in (0, 250, 500, 750)]
        assert on_one[f"validation/{group}_loss"] == pytest.approx(np.mean([on_one[name] for name in names]))
    assert len(on_one) == 10


@pytest.mark.parametrize("sizes", [pytest.param((8, 1, 1), marks=pytest.mark.slow), (2, 4, 1)])
def test_the_losses_are_the_same_bits_on_any_number_of_devices(micro_model, on_one, sizes):
    assert measure(configure(micro_model), make_mesh(*sizes)) == on_one


def test_devices_that_share_layers_agree_up_to_rounding(micro_model, on_one):
    assert measure(configure(micro_model), make_mesh(2, 2, 2)) == pytest.approx(on_one, rel=1e-5)


def test_what_is_drawn_at_random_in_training_does_not_change_them(micro_model, mesh, on_one):
    trained = {"loss": {"timestep_sampling": "logit_normal", "weighting": "min_snr", "noise_offset": 0.1}}
    crops = {"crop": "random", "flip": True}
    assert measure(configure(micro_model, **trained, data=crops), mesh) == on_one


def test_without_a_class_prompt_there_is_no_class_loss(micro_model, mesh, on_one):
    without = measure(configure(micro_model, data={"class_prompt": None}), mesh)
    assert without == {name: value for name, value in on_one.items() if "subject" in name}


def test_class_latents_of_another_shape_are_left_out(micro_model, mesh):
    assert "validation/class_loss" not in measure(configure(micro_model), mesh, np.zeros((3, 4, 4, 4), np.float32))


def test_captions_are_encoded_by_the_text_encoder_as_it_is_now(micro_model, mesh, on_one):
    changed = measure(configure(micro_model), mesh, text_scale=1.1)
    assert all(changed[name] != value for name, value in on_one.items())
    assert changed == pytest.approx(on_one, rel=0.1)


def test_images_are_measured_in_the_bucket_that_they_would_be_trained_in(micro_model, mesh, on_one):
    square = measure(configure(micro_model, data={"buckets": True}), mesh)
    assert square == on_one  # all of the cat's images are squares
