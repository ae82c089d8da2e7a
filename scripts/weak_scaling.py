"""The work of one chip in a step as the slice grows, at constant images per chip: compiled for v5e without a TPU.

    python scripts/weak_scaling.py [--run 2x2 4x4 8x8 16x16] [--images 2] [--fsdp 4]

A UNet of Stable Diffusion's shape with two levels of 128 and 256 channels at 256 px, fully trained in bfloat16, so that
a compile takes minutes. Each compiled slice leaves scripts/plan/weak-v5e-SHAPE.json; the table is made of those. Needs
libtpu.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from jaxbooth.config.run_config import Config
from jaxbooth.plan.compile import compile_programs
from jaxbooth.plan.hardware import TPUS, find_topology
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.skeleton import write_skeleton

FOLDER = Path(__file__).parent / "plan"
SHAPES = ("2x2", "4x4", "8x8", "16x16")
UNET = {
    "block_out_channels": [128, 256], "layers_per_block": 1, "sample_size": 32, "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip


def write_mid_sized(folder: Path) -> Path:
    """Writes a model folder without weights."""
    write_skeleton("sd15", folder)
    path = folder / "unet" / "config.json"
    write_json(path, read_json(path) | UNET)
    return folder


def compile_slice(shape: str, images: int, fsdp: int) -> dict[str, Any]:
    """Compiles the train step for a slice, with `images` instance images per chip and as many prior images."""
    topology = find_topology(f"v5e:{shape}")
    with tempfile.TemporaryDirectory() as scratch:
        settings = {
            "model": str(write_mid_sized(Path(scratch) / "model")),
            "train": {"batch_size": images * topology.devices, "dtype": "bfloat16"},
            "mesh": {"fsdp": fsdp},
        }
        analyses = compile_programs(Config.model_validate(settings), topology, sampling=False)
    return {"topology": topology.name, "chips": topology.chips, "images": images, "fsdp": fsdp} | analyses


def table_row(analyses: dict[str, Any], first: dict[str, Any]) -> str:
    """Returns a table row; changes are against the smallest slice."""
    chip = next(chip for chip in TPUS if chip.name == "v5e")
    train, before = analyses["train"], first["train"]
    assert chip.peak_flops
    assert chip.link_bandwidth
    flops, moved = train["flops"] + train["uncounted_flops"], train["bytes_accessed"]
    changes = (flops / (before["flops"] + before["uncounted_flops"]) - 1, moved / before["bytes_accessed"] - 1)
    sizes = {kind: total["bytes"] for kind, total in train["collectives"].items()}
    sent = sum(sizes.values())
    kinds = ", ".join(f"{kind} {size / 1e6:.1f}" for kind, size in sizes.items())
    return (
        f"| {analyses['topology']} | {analyses['chips']} | {flops / 1e9:.1f} ({changes[0]:+.1%}) | {moved / 1e9:.2f} "
        f"({changes[1]:+.1%}) | {sent / 1e6:.1f} ({kinds}) | {flops / sent:.0f} | "
        f"{sent / chip.link_bandwidth * 1e3:.2f} / {flops / chip.peak_flops * 1e3:.2f} |"
    )


def table() -> str:
    """Returns the Markdown table of every slice that was compiled."""
    paths = [path for shape in SHAPES if (path := FOLDER / f"weak-v5e-{shape}.json").exists()]
    slices = [json.loads(path.read_text()) for path in paths]
    head = (
        "| slice | chips | GFLOP per chip | GB moved per chip | MB of collectives per chip | FLOP per collective byte "
        "| ms on one link / ms of compute, at peak |\n|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *(table_row(analyses, slices[0]) for analyses in slices)])


def main() -> None:
    """Compiles what is asked for, one after another, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", nargs="*", default=[], choices=SHAPES, help="slices to compile")
    parser.add_argument(
        "--images", type=int, default=2, help="instance images per chip; as many prior images are added"
    )
    parser.add_argument("--fsdp", type=int, default=4)
    arguments = parser.parse_args()
    for shape in arguments.run:
        analyses = compile_slice(shape, arguments.images, arguments.fsdp)
        write_json(FOLDER / f"weak-v5e-{shape}.json", analyses)
        print(f"v5e:{shape}: compiled in {analyses['train']['compile_seconds']:.0f} s", flush=True)
    print(table())


if __name__ == "__main__":
    main()
