"""jaxbooth's train step on random weights and latents, dispatched as the training loop dispatches it."""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax_common import machine, peak_bytes, random_like
from worker import Subject, serve, timed

from jaxbooth.backend import enable_compilation_cache
from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.models.unet import AddedConditions
from jaxbooth.params import by_component
from jaxbooth.plan.abstract_step import abstract_base, abstract_step
from jaxbooth.plan.flops import dot_flops
from jaxbooth.sharding import make_mesh
from jaxbooth.training.state import initial_state
from jaxbooth.training.step import make_dispatch


def config_of(arguments: argparse.Namespace) -> Config:
    """Returns the run that the flags describe."""
    train = {"batch_size": arguments.rows, "dtype": arguments.dtype, "steps_per_dispatch": arguments.dispatch}
    train |= {"remat": arguments.remat, "optimizer": arguments.optimizer}
    return Config.model_validate(
        {
            "model": arguments.model,
            "model_quantization": arguments.quantization,
            "train": train,
            "prior": {"method": arguments.prior},
            "lora": {"rank": arguments.lora_rank},
            "seed": 0,
        }
        | ({"data": {"resolution": arguments.resolution}} if arguments.resolution else {})
    )


def useful_flops(config: Config, base: BaseModel) -> float:
    """Returns the FLOPs of products that training on one row cannot do without.

    A forward pass, as much again for the gradient of the activations, and once more for that of whole weights. Kernels
    and recomputation do more; that is not counted for anybody.
    """
    _, plain = abstract_base(config.model_copy(update={"lora": config.lora.model_copy(update={"rank": None})}), "cpu")
    side = base.latent_shape(config.resolution, config.resolution)
    text = plain.text.width
    shapes: Any = [(1, *side), (1,), (1, plain.text.encoders[-1].tokenizer.max_length, text)]
    added = None
    if base.text.conditioning.has_pooled:
        added = AddedConditions(jnp.zeros((1, base.text.encoders[-1].config.projection_dim)), jnp.zeros((1, 6)))
    run = jax.make_jaxpr(lambda params, *inputs: plain.denoiser.bind(params)(*inputs, added))
    jaxpr = run(plain.denoiser.shapes, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    return product_flops(jaxpr.jaxpr) * (2 if config.lora.rank else 3)


def product_flops(jaxpr: Any) -> int:
    """Returns the FLOPs of matrix products and convolutions, padding included, as published figures count them."""
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += dot_flops(equation)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * kernel.size // outputs
        elif name == "cond":  # one branch for each platform, all of them the same attention
            total += product_flops(params["branches"][-1].jaxpr)
        else:
            inner = (params.get(key) for key in ("jaxpr", "call_jaxpr"))
            total += params.get("length", 1) * sum(product_flops(getattr(j, "jaxpr", j)) for j in inner if j)
    return total


class Step:
    """A compiled dispatch and its state."""

    def __init__(self, config: Config):
        config, base = abstract_base(config)
        self.flops_per_row = useful_flops(config, base)
        mesh = make_mesh()
        described = abstract_step(config, base, mesh)
        self.frozen, self.source, self.key = random_like((described.frozen, described.source, described.key))
        self.state = initial_state(
            by_component(random_like(described.state.params)), described.spec.optimizer, bool(described.state.ema), mesh
        )
        self.longest = config.train.steps_per_dispatch
        self.rows = config.rows
        program = make_dispatch(described.spec, self.longest, self.state)
        lowered = program.lower(self.state, self.frozen, self.source, self.key, np.int32(1))
        self.compile_seconds = timed(lambda: setattr(self, "dispatch", lowered.compile()))

    def run(self, steps: int) -> float:
        """Runs steps as the training loop does: one dispatch ahead, metrics of the one before fetched."""
        began, pending, left = time.perf_counter(), None, steps
        while left:
            count = min(left, self.longest)
            self.state, metrics = self.dispatch(self.state, self.frozen, self.source, self.key, np.int32(count))
            if pending is not None:
                jax.device_get(pending)
            pending, left = metrics, left - count
        values = jax.device_get(pending)
        assert np.isfinite(values["loss"][:count]).all(), "the benchmark's own step diverged"
        return time.perf_counter() - began

    def outside(self) -> float | None:
        """Returns the share of a loop's time that the device does not need.

        Its own time for a step is the slope between a short and a long dispatch, where the fixed cost cancels.
        """
        if self.longest < 4:
            return None
        long, short = self.longest, self.longest // 2
        slopes = [(self.run(long) - self.run(short)) / (long - short) for _ in range(5)]
        return 1 - statistics.median(slopes) / (self.run(4 * long) / (4 * long))


def build(arguments: argparse.Namespace) -> Subject:
    """Compiles the step."""
    enable_compilation_cache()
    config = config_of(arguments)
    step = Step(config)
    facts: dict[str, Any] = machine() | {
        "rows": step.rows,
        "compile_seconds": step.compile_seconds,
        "flops_per_row": step.flops_per_row,
    }

    def last() -> float | None:
        # Not before: while other subjects compile, their kernels are tuned on the GPU that is profiled.
        if arguments.profile:
            profile(step, arguments.profile)
        return step.outside()

    return Subject(step.run, facts, peak_bytes, last)


def profile(step: Step, folder: Path) -> None:
    """Writes a trace of one dispatch, for xprof or Perfetto, beside the compiled program that its names refer to."""
    step.run(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.txt").write_text(step.dispatch.as_text())
    with jax.profiler.trace(str(folder)):
        step.run(2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prior", nargs="+", default=["class-images"], help="methods, each with as many rows")
    parser.add_argument("--lora-rank", type=int, default=None)
    parser.add_argument("--quantization", default="none", help="of the frozen weights of a LoRA")
    parser.add_argument("--optimizer", default="adamw")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--dispatch", type=int, default=10)
    parser.add_argument("--profile", type=Path, default=None)
    given = parser.parse_args()
    serve(lambda: build(given))
