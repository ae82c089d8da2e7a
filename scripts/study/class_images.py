"""Makes the class images of a task, which all its runs share, and measures what they cost."""

import time

from jaxbooth.base.model import load_params
from jaxbooth.config.run_config import Config, fill_defaults, resolve_paths
from jaxbooth.runs.inputs import class_image_sampler, generate_class_images, read_inputs
from jaxbooth.runs.prompts import encode_run_prompts
from jaxbooth.runs.restore import read_base, run_mesh


def make_class_images(config: Config) -> float:
    """Makes what is missing, as a run does before it trains; returns the CPU seconds that it took.

    Args:
        config: of a run that uses class images.
    """
    config = resolve_paths(config)
    base = read_base(config)
    config = fill_defaults(config, base.native_resolution, base.sampling)
    mesh = run_mesh(config)
    inputs = read_inputs(config, base)
    prompts = encode_run_prompts(config, base, inputs, mesh)
    params = load_params(base, mesh, components=base.resident_components)
    sampler = class_image_sampler(base, config.prior, config.resolution, mesh, prompts.sampled)
    began = time.process_time()
    for classes in inputs.classes:
        generate_class_images(params, classes, config.prior.seed, sampler)
    return time.process_time() - began
