"""What a LoRA on a quantized base needs, as `jaxbooth plan` estimates it: a table for docs/quantization.md.

    python scripts/quantization_table.py

Rank 16, one instance and one class image per step at 1024 px, `--train.remat blocks`. Seconds for each cell.
"""

from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.console.numbers import GIB
from jaxbooth.models.quantization import QUANTIZATIONS
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.plan.estimate import Estimate, estimate
from jaxbooth.plan.hardware import find_topology

MODELS = {"sdxl": "SDXL", "zimage": "Z-Image", "klein-4b": "klein 4B"}
TOPOLOGIES = ("rtx4090:1", "v5e:1")


def planned(model: str, kind: str, topology_name: str) -> Estimate:
    """Returns the estimate of a step."""
    topology = find_topology(topology_name)
    settings = load_config(None).model_dump(mode="json") | {"model": model, "model_quantization": kind}
    settings["lora"]["rank"] = 16
    settings["data"]["resolution"] = 1024
    settings["train"] |= {"batch_size": 1, "remat": "blocks"}
    return estimate(*abstract_base(Config.model_validate(settings), topology.platform), topology)


def main() -> None:
    """Prints the table."""
    columns = [f"`{name}`" for name in TOPOLOGIES]
    print(f"| model | held in | frozen | {' | '.join(columns)} | prompts |\n|---|---|---|{'---|' * len(columns)}---|")
    for model, title in MODELS.items():
        for kind in QUANTIZATIONS:
            estimates = [planned(model, kind, topology) for topology in TOPOLOGIES]
            first = estimates[0]
            held = "bfloat16" if kind == "none" else kind
            cells = [held, f"{first.persistent['frozen'] / GIB:.2f}"]
            cells += [f"{found.at().hbm_bytes / GIB:.1f}" for found in estimates]
            cells.append(f"{first.encoding / GIB:.1f}" if first.encoding else "")
            print(f"| {title} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
