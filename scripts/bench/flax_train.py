"""The step of diffusers 0.39's `train_dreambooth_flax.py` on random weights, but with latents and text features cached.

The script encodes images and prompts in every step, and copies the batch from the host; neither is done here.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
from diffusers import FlaxDDPMScheduler, FlaxUNet2DConditionModel
from jax_common import machine, peak_bytes
from worker import Subject, serve, timed


class Step:
    """A model, its optimizer, and a batch."""

    def __init__(self, arguments: argparse.Namespace):
        config, text_config = (
            json.loads((Path(arguments.folder) / name / "config.json").read_text()) for name in ("unet", "text_encoder")
        )
        kind = jax.default_backend()
        self.dtype = jnp.float32 if kind == "cpu" else jnp.bfloat16
        unet = FlaxUNet2DConditionModel.from_config(config, dtype=self.dtype)
        schedule = FlaxDDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
        )
        self.half, self.rows = arguments.rows, 2 * arguments.rows
        side, random = config["sample_size"], np.random.default_rng(0)
        shape, tokens = (self.rows, config["in_channels"], side, side), text_config["max_position_embeddings"]
        batch = (
            random.standard_normal(shape, np.float32),
            random.standard_normal((self.rows, tokens, config["cross_attention_dim"]), np.float32),
        )
        self.batch = jax.device_put(batch)
        self.params = jax.jit(unet.init_weights)(jax.random.key(0))
        self.tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-6))
        self.opt_state = jax.jit(self.tx.init)(self.params)
        self.key = jax.random.key(1)
        self.update = jax.jit(self.trace(unet, schedule), donate_argnums=(0, 1))

    def trace(self, unet: Any, schedule: Any) -> Any:
        """Returns (params, optimizer state, batch, key) -> the same after an update, and the loss."""
        constants, half = schedule.create_state(), self.half

        def update(params: Any, opt_state: Any, batch: Any, key: Any) -> Any:
            latents, text = batch
            of_noise, of_time = jax.random.split(key)

            def loss_of(params: Any) -> Any:
                noise = jax.random.normal(of_noise, latents.shape)
                timesteps = jax.random.randint(of_time, (self.rows,), 0, 1000)
                noisy = schedule.add_noise(constants, latents, noise, timesteps)
                output = unet.apply({"params": params}, noisy, timesteps, text, train=True).sample
                error = (output.astype(jnp.float32) - noise) ** 2
                return error[:half].mean() + error[half:].mean()

            loss, grads = jax.value_and_grad(loss_of)(params)
            updates, opt_state = self.tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        return update

    def run(self, steps: int) -> float:
        """Runs steps; the loss is fetched once."""

        def work() -> None:
            for _ in range(steps):
                self.key, key = jax.random.split(self.key)
                self.params, self.opt_state, loss = self.update(self.params, self.opt_state, self.batch, key)
            assert np.isfinite(loss)

        return timed(work)


def build(arguments: argparse.Namespace) -> Subject:
    """Prepares the step."""
    step = Step(arguments)
    return Subject(step.run, machine(diffusers=diffusers.__version__) | {"rows": step.rows}, peak_bytes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, help="a diffusers folder; no weights needed")
    parser.add_argument("--rows", type=int, default=4)
    given = parser.parse_args()
    serve(lambda: build(given))
