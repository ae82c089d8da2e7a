"""From image files to the latent cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxbooth.base.vae import ImageEncoder
from jaxbooth.data.crops import CropSpec, load_augmentations
from jaxbooth.data.images import ImageFile, load_image
from jaxbooth.data.latents import concatenate_images, distinct_captions, encode_images
from jaxbooth.errors import RunFailure
from jaxbooth.runs.training_data import batches
from jaxbooth.sharding import make_mesh


@pytest.fixture
def files(tmp_path, rng):
    found = []
    for index in range(2):
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (80, 64, 3), dtype=np.uint8)).save(path)
        found.append(ImageFile(path, f"caption {index}", index))
    return found


@pytest.fixture
def encode(base, params, mesh):
    return ImageEncoder(base, params["vae"], mesh)


def encode_all(encode, files, crops, masked):
    """Encodes any number of images."""
    groups = []
    for batch in batches(files, encode.batch_size):
        augmentations = list(load_augmentations(batch, crops, masked))
        groups.append(encode_images(encode, batch, augmentations, masked, factor=4))
    return concatenate_images(groups)


def test_every_augmentation_is_the_encoding_of_its_pixels(files, encode, base, params):
    crops = CropSpec(64, 64, crops=2, flip=True, seed=0)
    images = encode_all(encode, files, crops, masked=False)
    assert images.mean.shape == (2, 4, 16, 16, 4)
    seen = crops.augment(load_image(files[1].path), 1)
    expected = base.vae.bind(params["vae"]).encode(jnp.asarray(seen.pixels[3:], jnp.float32) / 127.5 - 1)
    np.testing.assert_allclose(images.mean[1, 3], expected.mean[0], atol=2e-4)
    np.testing.assert_array_equal(images.time_ids[1], seen.time_ids)
    assert images.masks is None


def test_images_are_the_same_on_one_device_and_spread_over_several(files, encode, base, params):
    crops = CropSpec(64, 64, crops=2, flip=False, seed=0)
    three = [*files, files[0]]
    spread = ImageEncoder(base, params["vae"], make_mesh(data=2, fsdp=2, tensor=2))
    assert (encode.batch_size, spread.batch_size) == (1, 4)
    expected, found = (encode_all(each, three, crops, masked=True) for each in (encode, spread))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), expected, found)


def test_more_images_than_devices_keep_their_order(files, base, params):
    crops, many = CropSpec(64, 64), [*files, *files, files[1]]
    spread = ImageEncoder(base, params["vae"], make_mesh(devices=jax.devices()[:2]))
    found = encode_all(spread, many, crops, masked=False)
    np.testing.assert_array_equal(found.mean, found.mean[[0, 1, 0, 1, 1]])
    assert not np.allclose(found.mean[0], found.mean[1], atol=0.1)


def test_a_non_finite_latent_names_its_image(files, base, params, mesh):
    broken = params["vae"] | {"encoder.conv_in.bias": np.full(32, np.nan, np.float32)}
    with pytest.raises(RunFailure, match=r"0\.png: the VAE encodes this image to non-finite latents"):
        encode_all(ImageEncoder(base, broken, mesh), files, CropSpec(64, 64), masked=False)


def test_a_mask_is_the_share_of_a_latents_pixels_that_counts(files, encode, base):
    mask = np.zeros((80, 64), np.uint8)
    mask[:, :30] = 255  # seven latents of four pixels, and half of the eighth
    for file in files:
        Image.fromarray(mask).save(file.path.with_suffix(".mask.png"))
    images = encode_all(encode, files, CropSpec(64, 64), masked=True)
    assert images.masks.shape == (2, 1, 16, 16, 1)
    np.testing.assert_array_equal(images.masks[0, 0, 3, :, 0], [1] * 7 + [0.5] + [0] * 8)


def test_images_without_masks_beside_images_with_them_count_everywhere(files, encode, base):
    for file in files:
        Image.fromarray(np.full((80, 64), 51, np.uint8)).save(file.path.with_suffix(".mask.png"))
    crops = CropSpec(64, 64)
    groups = [encode_all(encode, files, crops, masked) for masked in (True, False)]
    images = concatenate_images(groups)
    np.testing.assert_allclose(images.masks[:2], 0.2)
    np.testing.assert_array_equal(images.masks[2:], 1.0)
    np.testing.assert_array_equal(images.mean[2:], images.mean[:2])


def test_each_caption_is_held_once_and_the_empty_one_last(files):
    twice = [file.caption for file in (*files, *files)]
    assert distinct_captions(twice, with_empty=False) == ["caption 0", "caption 1"]
    assert distinct_captions(twice, with_empty=True) == ["caption 0", "caption 1", ""]
