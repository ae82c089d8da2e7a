"""Generating images."""

import numpy as np
import pytest

from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.errors import UserError
from jaxbooth.pipeline import Pipeline
from jaxbooth.sharding import make_mesh

SETTINGS = SamplingConfig("ddpm", 3, 3.0, 64)


def test_an_image_depends_on_seed_and_index_alone(micro, micro_params, mesh):
    prompts = ["an emoji of a cat"] * 5
    whole = ImageSampler(micro, mesh, SETTINGS, 5).generate(micro_params, prompts, 1, range(5))
    parts = ImageSampler(micro, mesh, SETTINGS, 2).generate(micro_params, prompts, 1, range(5))
    assert np.abs(whole.astype(int) - parts).max() <= 1  # one rounding step of 8 bits
    assert len({image.tobytes() for image in whole}) == 5
    single = ImageSampler(micro, mesh, SETTINGS, 1).generate(micro_params, prompts[:1], 1, [3])
    assert np.abs(whole[3].astype(int) - single[0]).max() <= 1


def test_seeds_that_share_their_lower_half_give_other_images(micro, micro_params, mesh):
    image_sampler = ImageSampler(micro, mesh, SETTINGS, 1)
    images = [
        image_sampler.generate(micro_params, ["an emoji of a cat"], seed, [0]) for seed in (7, 7 + 2**32, 7 + 2**62)
    ]
    assert len({image.tobytes() for image in images}) == 3
    assert image_sampler.program._cache_size() == 1


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("guidance_scale", float("inf"), "finite number"),
        ("guidance_scale", 1e308, "less than or equal to 100"),
        ("guidance_scale", float("nan"), "finite number"),
        ("num", 10**12, "less than or equal to 10000"),
        ("num", 0, "greater than 0"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**63, "less than or equal to 9223372036854775807"),
        ("steps", 10**6, "less than or equal to 1000"),
        ("resolution", 0, "greater than 0"),
        ("resolution", 10**6, "less than or equal to 8192"),
        ("sampler", "plms", "input should be 'ddpm', 'ddim'"),
        ("prompt", 5, "valid string"),
        ("prompt", "\udcff", "valid string"),
    ],
)
def test_an_argument_out_of_range_is_named(micro, micro_params, mesh, name, value, reason):
    pipeline = Pipeline(micro, micro_params, mesh, 64)
    with pytest.raises(UserError, match=rf"^Pipeline\.sample: {name} = .* is not valid: .*{reason}"):
        pipeline.sample(**{"prompt": "a cat", name: value})


def test_the_number_of_devices_does_not_matter(micro, micro_params, mesh):
    prompts = ["an emoji of a cat"] * 3
    one = ImageSampler(micro, mesh, SETTINGS, 3).generate(micro_params, prompts, 1, range(3))
    four = ImageSampler(micro, make_mesh(data=2, fsdp=2, devices=mesh_devices(4)), SETTINGS, 3).generate(
        micro_params, prompts, 1, range(3)
    )
    assert np.abs(one.astype(int) - four).max() <= 1


def mesh_devices(count):
    import jax

    return jax.devices()[:count]


def test_guidance_one_is_the_conditional_model(micro, micro_params, mesh):
    prompts = ["an emoji of a cat"]
    plain = ImageSampler(micro, mesh, SamplingConfig("ddim", 3, 1.0, 64), 1).generate(micro_params, prompts, 0, [0])
    nearly = ImageSampler(micro, mesh, SamplingConfig("ddim", 3, 1.0 + 1e-6, 64), 1).generate(
        micro_params, prompts, 0, [0]
    )
    assert np.abs(plain.astype(int) - nearly).max() <= 1


def test_prompt_and_negative_prompt_change_the_image(micro, micro_params, mesh):
    plain = ImageSampler(micro, mesh, SamplingConfig("ddim", 4, 4.0, 64), 2)
    cat, apple = plain.generate(micro_params, ["a cat", "a red apple"], 0, [0, 0]).astype(int)
    assert np.abs(cat - apple).mean() > 5
    negative = ImageSampler(micro, mesh, SamplingConfig("ddim", 4, 4.0, 64, "a cat"), 1).generate(
        micro_params, ["a cat"], 0, [0]
    )
    assert np.abs(cat - negative[0]).mean() > 5


def test_a_resolution_that_does_not_divide_is_refused_with_the_nearest_that_does(base, mesh):
    with pytest.raises(UserError, match="100 is not a multiple of 16, which this model needs; try 96"):
        ImageSampler(base, mesh, SamplingConfig("ddim", 4, 4.0, 100), 1)


def test_the_library_returns_pil_images(mesh):
    images = Pipeline.load("demo", mesh=mesh).sample("an emoji of a cat", num=2, steps=2)
    assert [image.size for image in images] == [(64, 64), (64, 64)]
