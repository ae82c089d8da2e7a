"""What quantizing a base model changes: its kernels, its output, its images. A table for docs/quantization.md.

    python scripts/quantization_error.py [MODEL ...]

Without names, of the two embedded models. Errors are root mean squares, as shares of what is exact: over all quantized
kernels of the denoiser; and of its output for noised latents of four images at four timesteps. Images are compared by
their mean difference, of 255, with the same seeds and 25 steps.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxbooth.base.model import BaseModel, encode_prompts, load_params
from jaxbooth.models.quantization import QUANTIZATIONS, dequantize, quantized_kernels
from jaxbooth.params import KERNEL_SCALE, Params
from jaxbooth.pipeline import Pipeline

PROMPT = "a 3d emoji of a red apple on a blue background"
IMAGES = 4
TIMESTEPS = (0.2, 0.4, 0.6, 0.8)  # of the schedule's


def denoiser_output(pipeline: Pipeline, params: dict[str, Params]) -> np.ndarray:
    """Returns the denoiser's output for images of the pipeline's resolution."""
    base, side = pipeline.base, pipeline.resolution
    encoders = load_params(base, pipeline.mesh, components=base.text_encoder_names)
    ids = base.text.tokenize([PROMPT] * IMAGES)
    text = jax.jit(lambda values: encode_prompts(base, pipeline.mesh, values, ids))(encoders)
    latents = np.random.default_rng(0).normal(size=(IMAGES, *base.latent_shape(side, side))).astype(np.float32)
    last = base.schedule.num_train_timesteps - 1
    timesteps = jnp.array([share * last for share in TIMESTEPS]).astype(jnp.int32)
    time_ids = jnp.broadcast_to(jnp.array([side, side, 0, 0, side, side], jnp.float32), (IMAGES, 6))
    conditions = base.denoiser_conditioning(text, time_ids)
    times = base.schedule.network_timesteps(timesteps)
    run = jax.jit(lambda values: base.denoiser.bind(values)(latents, times, *conditions))
    return np.asarray(run(params[base.denoiser_name]), np.float64)


def kernel_error(base: BaseModel, exact: Params, found: Params) -> float:
    """Returns the error of all quantized kernels together."""
    total = changed = 0.0
    for name in quantized_kernels(base.denoiser.shapes, base.quantization):
        kernel = np.asarray(exact[name], np.float64)
        total += np.sum(kernel**2)
        changed += np.sum((np.asarray(dequantize(found[name], found[name + KERNEL_SCALE])) - kernel) ** 2)
    return float(np.sqrt(changed / total))


def images(pipeline: Pipeline) -> np.ndarray:
    """Returns images of the prompt."""
    return np.stack([np.asarray(image, np.float64) for image in pipeline.sample(PROMPT, IMAGES)])


def main() -> None:
    """Prints the table."""
    print("| model | held in | kernels | output | images |\n|---|---|---|---|---|")
    for model in sys.argv[1:] or ("demo", "demo-flow"):
        exact = Pipeline.load(model, "float32")
        name, output, exact_images = exact.base.denoiser_name, denoiser_output(exact, exact.params), images(exact)
        for kind in QUANTIZATIONS[1:]:
            found = Pipeline.load(model, "float32", quantization=kind)
            of_kernels = kernel_error(found.base, exact.params[name], found.params[name])
            change = denoiser_output(exact, found.params) - output
            of_output = np.sqrt(np.mean(change**2) / np.mean(output**2))
            of_images = np.abs(images(found) - exact_images).mean()
            print(f"| {model} | {kind} | {of_kernels:.2%} | {of_output:.2%} | {of_images:.1f} |", flush=True)


if __name__ == "__main__":
    main()
