"""Images per second of the train step for K = 1 and K = 10 steps a dispatch, and the share of time outside the device.

    python scripts/bench_step.py [--model demo] [--rows 4] [--steps 60] [--dtype auto] [--lora-rank 16] [--remat]

One compiled program serves every K. The two take turns, so that a noisy machine disturbs both alike; medians are
printed. The device's own time for a step is the slope between dispatches of K = 10 and K = 20, where the fixed cost of
a dispatch cancels; what a loop of dispatches takes beyond that is time outside the device step.
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbooth.config import Config
from jaxbooth.data.latents import Bank, Encoded
from jaxbooth.pipeline import Base, load_params
from jaxbooth.run_folder import read_base
from jaxbooth.sharding import make_mesh, replicated
from jaxbooth.text import Text
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.rows import make_streams
from jaxbooth.training.state import initial_state
from jaxbooth.training.step import make_dispatch, make_task
from jaxbooth.training.trainable import initial_values, on_mesh, trained_shapes, whole_components

INSTANCES, PRIORS, LONGEST = 5, 48, 20


def random_bank(base: Base, mesh: Mesh) -> Bank:
    """Random latents and captions of the model's own resolution."""
    rng, side = np.random.default_rng(0), base.native_resolution
    shape = (INSTANCES + PRIORS, 1, *base.latent_shape(side, side))
    images = Encoded(
        rng.normal(size=shape).astype(np.float32),
        np.full(shape, -4.0, np.float32),
        np.full((*shape[:2], 6), side, np.float32),
        None,
    )
    tower = base.text.towers[-1]
    context = rng.normal(size=(2, tower.length, base.text.width)).astype(np.float32)
    pooled = rng.normal(size=(2, tower.config.projection_dim)).astype(np.float32) if base.text.is_xl else None
    bank = Bank(images, np.array([0] * INSTANCES + [1] * PRIORS, np.int32), Text(context, pooled))
    return jax.device_put(bank, replicated(mesh))


class Bench:
    """A train step on random latents."""

    def __init__(self, model: str, rows: int, dtype: str, lora_rank: int | None, remat: bool):
        mesh = make_mesh()
        train, lora = {"batch_size": rows, "dtype": dtype, "remat": remat}, {"rank": lora_rank}
        config = Config.model_validate({"model": model, "train": train, "lora": lora})
        base = read_base(config)
        tx, shapes = make_optimizer(config), trained_shapes(base, config)
        whole = whole_components(base, shapes)
        params = load_params(base, mesh, whole, ("unet",))
        values = on_mesh(initial_values(base, config, shapes, params), mesh)
        self.rows, self.bank = 2 * rows, random_bank(base, mesh)
        self.frozen = {} if whole else params
        self.state = initial_state(values, tx, False, mesh)
        task = make_task(base, config, make_streams([INSTANCES], [PRIORS], [0], [1.0]), mesh)
        self.dispatch = make_dispatch(task, tx, LONGEST, self.state)

    def run(self, count: int) -> Any:
        """Dispatches `count` steps."""
        return self.dispatch(self.state, self.frozen, self.bank, np.int32(count), np.int32(0))

    def seconds_per_step(self, count: int, steps: int) -> float:
        """Runs about `steps` steps as the training loop does: one dispatch ahead, metrics of the one before fetched."""
        pending = None
        began = time.perf_counter()
        dispatches = max(1, steps // count)
        for _ in range(dispatches):
            self.state, metrics = self.run(count)
            if pending is not None:
                jax.device_get(pending)
            pending = metrics
        jax.device_get(pending)
        return (time.perf_counter() - began) / (dispatches * count)

    def one_dispatch(self, count: int) -> float:
        """Seconds of a single dispatch of `count` steps, waited for."""
        began = time.perf_counter()
        self.state, metrics = self.run(count)
        jax.block_until_ready(metrics)
        return time.perf_counter() - began


def main() -> None:
    """Measures and prints a table and a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=4, help="instance rows; as many prior rows are added")
    parser.add_argument("--steps", type=int, default=60, help="steps of each timed run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--lora-rank", type=int, default=None, help="train adapters in place of the whole UNet")
    parser.add_argument("--remat", action="store_true", help="gradient checkpointing")
    arguments = parser.parse_args()
    bench = Bench(arguments.model, arguments.rows, arguments.dtype, arguments.lora_rank, arguments.remat)
    began = time.perf_counter()
    bench.one_dispatch(1)
    compile_seconds = time.perf_counter() - began
    loops: dict[int, list[float]] = {1: [], 10: []}
    slopes = []
    for _ in range(arguments.rounds):
        for count, seconds in loops.items():
            seconds.append(bench.seconds_per_step(count, arguments.steps))
        slopes.append((bench.one_dispatch(20) - bench.one_dispatch(10)) / 10)
    device = statistics.median(slopes)
    print(f"{jax.devices()[0].device_kind}, {bench.rows} rows a step, first dispatch {compile_seconds:.1f} s")
    print("| K | images/s | spread | outside the device step |\n|---|---|---|---|")
    results = {"device_seconds_per_step": device, "rows": bench.rows}
    for count, seconds in loops.items():
        rates = sorted(bench.rows / value for value in seconds)
        outside = 1 - device / statistics.median(seconds)
        print(f"| {count} | {statistics.median(rates):.1f} | {rates[0]:.1f} to {rates[-1]:.1f} | {outside:.1%} |")
        results[f"images_per_second_k{count}"] = statistics.median(rates)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
