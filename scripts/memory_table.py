"""What a device needs for an instance and a class image: models, full or LoRA, by checkpointing policy and optimizer.

    python scripts/memory_table.py

Estimated from shapes for a TPU v6e, without a compiler; prints the two tables of docs/speed.md.
"""

from typing import Any

from jaxbooth.config.run_config import Config
from jaxbooth.console.numbers import GIB
from jaxbooth.models.remat import REMATS
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.plan.estimate import estimate
from jaxbooth.plan.hardware import find_topology
from jaxbooth.plan.roofline import StepCost
from jaxbooth.weights.architectures import LDM_FAMILIES

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {}, "adamw, `--train.mu-dtype bfloat16`": {"mu_dtype": "bfloat16"},
    "lion": {"optimizer": "lion"}, "lion, `--train.mu-dtype bfloat16`": {"optimizer": "lion", "mu_dtype": "bfloat16"},
    "adafactor": {"optimizer": "adafactor"},
}  # fmt: skip
CASES = {"whole UNet": None, "LoRA of rank 16": 16}


def step_cost(model: str, rank: int | None, **train: Any) -> StepCost:
    """Estimates a step of 1 + 1 images."""
    config = Config.model_validate({"model": model, "lora": {"rank": rank}, "train": {"batch_size": 1} | train})
    config, base = abstract_base(config, "tpu")
    return estimate(config, base, find_topology("v6e:1x1")).at()


def main() -> None:
    """Prints both tables."""
    print(f"| | {' | '.join(f'`{policy}`' for policy in REMATS)} |\n|---{'|---' * len(REMATS)}|")
    for model in LDM_FAMILIES:
        for name, rank in CASES.items():
            costs = [step_cost(model, rank, remat=policy) for policy in REMATS]
            cells = (f"{cost.hbm_bytes / GIB:.2f} GiB, {cost.flops / 1e12:.1f} TFLOP" for cost in costs)
            print(f"| {model}, {name} | {' | '.join(cells)} |", flush=True)
    print("\n| SD 1.5, whole UNet | optimizer state | whole step |\n|---|---|---|")
    for name, train in OPTIMIZERS.items():
        cost = step_cost("sd15", None, remat="none", **train)
        print(f"| {name} | {cost.memory['optimizer'] / GIB:.2f} GiB | {cost.hbm_bytes / GIB:.2f} GiB |", flush=True)


if __name__ == "__main__":
    main()
