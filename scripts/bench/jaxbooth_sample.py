"""jaxbooth's sampler on random weights: prompts to pixels, with guidance."""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax_common import machine, peak_bytes, random_like
from worker import Subject, serve, timed

from jaxbooth.backend import enable_compilation_cache
from jaxbooth.base.model import BaseModel
from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.config.run_config import Config
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.sharding import make_mesh, param_shardings


def described(base: BaseModel, name: str, mesh: Mesh) -> Any:
    """Describes a component's parameters as `jaxbooth sample` loads them."""
    dtype = jnp.float32 if name == "vae" else base.dtype
    return {
        leaf: jax.ShapeDtypeStruct(shape.shape, dtype, sharding=param_shardings(mesh)(leaf, shape.shape))
        for leaf, shape in base.module(name).shapes.items()
    }


def build(arguments: argparse.Namespace) -> Subject:
    """Makes a image_sampler and its weights."""
    enable_compilation_cache()
    config, base = abstract_base(Config.model_validate({"model": arguments.model}))
    mesh = make_mesh()
    params = random_like({name: described(base, name, mesh) for name in base.components})
    settings = SamplingConfig(arguments.sampler, arguments.steps, 7.5, config.resolution)
    image_sampler = ImageSampler(base, mesh, settings, arguments.rows, quiet=True)
    prompts = ["a photo of a dog"] * arguments.rows

    def run(count: int) -> float:
        return timed(
            lambda: [image_sampler.generate(params, prompts, seed, range(arguments.rows)) for seed in range(count)]
        )

    return Subject(run, machine() | {"rows": image_sampler.batch_size}, peak_bytes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpmpp_2m")
    given = parser.parse_args()
    serve(lambda: build(given))
