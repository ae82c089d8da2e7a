"""From picture files to the latent bank."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.images import Framing, Picture
from jaxbooth.data.latents import build_bank, encode_pictures
from jaxbooth.errors import RunFailure


@pytest.fixture
def pictures(tmp_path, rng):
    found = []
    for index in range(2):
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (80, 64, 3), dtype=np.uint8)).save(path)
        found.append(Picture(path, f"caption {index}"))
    return found


def test_every_variant_is_the_encoding_of_its_pixels(pictures, base, params, mesh):
    framing = Framing(64, crops=2, flip=True, seed=0)
    moments = encode_pictures(base, params["vae"], pictures, framing, mesh)
    assert moments.mean.shape == (2, 4, 16, 16, 4)
    pixels = framing.apply(Image.open(pictures[1].path), 1)[3:]
    expected = base.vae.bind(params["vae"]).encode(jnp.asarray(pixels, jnp.float32) / 127.5 - 1)
    np.testing.assert_allclose(moments.mean[1, 3], expected.mean[0], atol=2e-4)


def test_a_non_finite_latent_names_its_picture(pictures, base, params, mesh):
    broken = params["vae"] | {"encoder.conv_in.bias": np.full(32, np.nan, np.float32)}
    with pytest.raises(RunFailure, match=r"0\.png: the VAE encodes this picture to non-finite latents"):
        encode_pictures(base, broken, pictures, Framing(64, 0, False, 0), mesh)


def test_the_bank_holds_each_caption_once_and_each_image_its_own(pictures, base, params, mesh):
    moments = encode_pictures(base, params["vae"], pictures, Framing(64, 0, False, 0), mesh)
    classes = [Picture(picture.path, "class") for picture in pictures]
    bank = build_bank(
        [(pictures, moments), (classes, moments)], lambda captions: jnp.asarray([map_length(captions)]), mesh
    )
    assert np.asarray(bank.caption).tolist() == [0, 1, 2, 2]
    assert np.asarray(bank.text).tolist() == [[9, 9, 5]]
    np.testing.assert_array_equal(bank.mean[2:], bank.mean[:2])


def map_length(captions):
    return [len(caption) for caption in captions]
