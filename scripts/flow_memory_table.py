"""What Z-Image and FLUX.2 klein need on TPUs and GPUs, as `jaxbooth plan` estimates it: a table for docs/plan.md.

    python scripts/flow_memory_table.py

Each device has one instance image and one class image per step. Where that does not fit with whole copies of the
model, the weights are sharded over all devices. A minute for each model and kind of training on one CPU core.
"""

from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.console.numbers import GIB
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.plan.estimate import Estimate
from jaxbooth.plan.fit import resolve_remat
from jaxbooth.plan.hardware import find_topology

MODELS = {"zimage": "Z-Image", "klein-4b": "klein 4B", "klein-9b": "klein 9B"}
RANKS = {"LoRA": 16, "full": None}
TOPOLOGIES = ("v5e:2x2", "v5e:2x4", "v6e:1", "v6e:2x2", "v5p:2x2x1", "rtx4090:1", "a100-80gb:1", "h100:1")
RESOLUTIONS = (512, 1024)


def planned(model: str, rank: int | None, topology_name: str, resolution: int, fsdp: int) -> tuple[Config, Estimate]:
    """Returns the run with the policy that it would choose, and the estimate of its step."""
    topology = find_topology(topology_name)
    settings = load_config(None).model_dump(mode="json")
    settings["model"] = model
    settings["lora"]["rank"] = rank
    settings["data"]["resolution"] = resolution
    settings["mesh"]["fsdp"] = fsdp
    settings["train"]["batch_size"] = topology.devices
    config, base = abstract_base(Config.model_validate(settings), topology.platform)
    return resolve_remat(config, base, topology)


def cell(model: str, rank: int | None, topology: str, resolution: int) -> str:
    """Returns the memory of a device in GiB, and what makes the step fit; a dash where nothing does."""
    devices = find_topology(topology).devices
    for fsdp in dict.fromkeys((1, devices)):
        config, estimate = planned(model, rank, topology, resolution, fsdp)
        if estimate.fits():
            settings = [f"fsdp {fsdp}"] if fsdp > 1 else []
            settings += ["remat"] if config.train.remat_policy != "none" else []
            return ", ".join([f"{estimate.needed() / GIB:.1f}", *settings])
    return "-"


def main() -> None:
    """Prints the table."""
    print(f"| | | {' | '.join(f'`{name}`' for name in TOPOLOGIES)} |\n|---|---{'|---' * len(TOPOLOGIES)}|")
    for model, title in MODELS.items():
        for kind, rank in RANKS.items():
            for resolution in RESOLUTIONS:
                cells = (cell(model, rank, topology, resolution) for topology in TOPOLOGIES)
                print(f"| {title}, {kind} | {resolution} px | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
