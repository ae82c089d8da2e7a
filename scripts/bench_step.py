"""Images per second of the train step for K = 1 and K = 10 steps a dispatch, and the share of time outside the device.

    python scripts/bench_step.py [--model demo] [--rows 4] [--steps 60] [--dtype auto]

One compiled program serves every K. The two take turns, so that a noisy machine disturbs both alike; medians are
printed. The device's own time for a step is the slope between dispatches of K = 10 and K = 20, where the fixed cost of
a dispatch cancels; what a loop of dispatches takes beyond that is time outside the device step.
"""

import argparse
import json
import statistics
import time

import jax
import numpy as np

from jaxbooth.config import TrainConfig
from jaxbooth.data.latents import Bank
from jaxbooth.pipeline import Base, load_params
from jaxbooth.sharding import make_mesh, replicated
from jaxbooth.training.optimizer import make_optimizer
from jaxbooth.training.state import initial_state
from jaxbooth.training.step import make_dispatch, make_task
from jaxbooth.weights.resolve import resolve_model

INSTANCES, PRIORS, LONGEST = 5, 48, 20


class Bench:
    """A train step on random latents."""

    def __init__(self, model: str, rows: int, dtype: str):
        mesh = make_mesh()
        base = Base.read(resolve_model(model), dtype)
        config = TrainConfig(batch_size=rows)
        rng = np.random.default_rng(0)
        shape = (INSTANCES + PRIORS, 1, *base.latent_shape(base.native_resolution))
        width = base.unet_config.cross_attention_dim
        bank = Bank(
            rng.normal(size=shape).astype(np.float32),
            np.full(shape, -4.0, np.float32),
            np.array([0] * INSTANCES + [1] * PRIORS, np.int32),
            rng.normal(size=(2, base.max_length, width)).astype(np.float32),
        )
        tx = make_optimizer(config)
        self.rows = 2 * rows
        self.bank = jax.device_put(bank, replicated(mesh))
        params = load_params(base, mesh, trained=("unet",))
        self.state = initial_state({"unet": params["unet"]}, tx, False, mesh)
        task = make_task(base, config, rows, INSTANCES, PRIORS, 0, mesh)
        self.dispatch = make_dispatch(task, tx, LONGEST, self.state)

    def seconds_per_step(self, count: int, steps: int) -> float:
        """Runs about `steps` steps as the training loop does: one dispatch ahead, metrics of the one before fetched."""
        pending = None
        began = time.perf_counter()
        dispatches = max(1, steps // count)
        for _ in range(dispatches):
            self.state, metrics = self.dispatch(self.state, self.bank, np.int32(count))
            if pending is not None:
                jax.device_get(pending)
            pending = metrics
        jax.device_get(pending)
        return (time.perf_counter() - began) / (dispatches * count)

    def one_dispatch(self, count: int) -> float:
        """Seconds of a single dispatch of `count` steps, waited for."""
        began = time.perf_counter()
        self.state, metrics = self.dispatch(self.state, self.bank, np.int32(count))
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
    arguments = parser.parse_args()
    bench = Bench(arguments.model, arguments.rows, arguments.dtype)
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
