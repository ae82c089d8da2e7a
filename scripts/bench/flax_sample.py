"""diffusers 0.39's Flax pipeline on random weights: prompts to pixels, with guidance.

With DPM-Solver++ alone: its DDPM calls `jnp.clip` as JAX no longer has it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
from diffusers import (
    FlaxAutoencoderKL,
    FlaxDPMSolverMultistepScheduler,
    FlaxStableDiffusionPipeline,
    FlaxUNet2DConditionModel,
)
from jax_common import machine, peak_bytes
from transformers import CLIPTextConfig, CLIPTokenizer, FlaxCLIPTextModel
from worker import Subject, serve, timed


def pipeline_of(folder: Path) -> tuple[FlaxStableDiffusionPipeline, dict[str, Any]]:
    """Builds a pipeline from configurations, and its random parameters."""
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16

    def read(component: str, name: str = "config.json") -> dict[str, Any]:
        return json.loads((folder / component / name).read_text())

    unet = FlaxUNet2DConditionModel.from_config(read("unet"), dtype=dtype)
    vae = FlaxAutoencoderKL.from_config(read("vae"), dtype=dtype)
    text = FlaxCLIPTextModel(CLIPTextConfig(**read("text_encoder")), dtype=dtype)
    scheduler = FlaxDPMSolverMultistepScheduler.from_config(read("scheduler", "scheduler_config.json"))
    params = {
        "unet": jax.jit(unet.init_weights)(jax.random.key(0)),
        "vae": jax.jit(vae.init_weights)(jax.random.key(1)),
        "text_encoder": text.params,
        "scheduler": scheduler.create_state(),
    }
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    pipeline = FlaxStableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, dtype)
    return pipeline, params


def build(arguments: argparse.Namespace) -> Subject:
    """Prepares the pipeline."""
    folder = Path(arguments.folder)
    pipeline, params = pipeline_of(folder)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    ids = pipeline.prepare_inputs(["a photo of a dog"] * arguments.rows)
    # What `pipeline(..., jit=True)` does with one device.
    program = jax.jit(pipeline._generate, static_argnums=(3, 4, 5))

    def draw(count: int) -> None:
        for seed in range(count):
            jax.device_get(program(ids, params, jax.random.PRNGKey(seed), arguments.steps, side, side, 7.5))

    facts = machine(diffusers=diffusers.__version__) | {"rows": arguments.rows}
    return Subject(lambda count: timed(lambda: draw(count)), facts, peak_bytes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, help="a diffusers folder; no weights needed")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--sampler", default="dpmpp_2m", choices=["dpmpp_2m"])
    given = parser.parse_args()
    serve(lambda: build(given))
