"""jaxbooth beside diffusers in PyTorch and in Flax, in one run: speed, memory and start-up, as a table and as JSON.

    python scripts/benchmark.py train --model sd15 --rows 4 --subjects jaxbooth torch torch-compile torch-vae
    python scripts/benchmark.py train --model demo --rows 4 --subjects jaxbooth flax torch
    python scripts/benchmark.py sample --model sd15 --rows 4 --steps 20 --subjects jaxbooth torch

Every subject is a process of its own, on random weights of the model's architecture. When all are ready they take
turns, so that whatever disturbs the machine disturbs all of them, and medians over the turns are reported. `flax` needs
diffusers 0.39, which is the last one with Flax: an environment for it is made once and kept.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxbooth.assets import ASSETS
from jaxbooth.plan.hardware import find_chip
from jaxbooth.storage.files import write_json
from jaxbooth.weights.architectures import PUBLISHED, PUBLISHED_NAMES
from jaxbooth.weights.skeleton import write_skeleton

HERE = Path(__file__).parent / "bench"
PEER_FOLDER = Path("~/.cache/jaxbooth/bench-flax").expanduser()
PEER_PACKAGES = ("diffusers==0.39.*", "transformers==4.57.6", "flax==0.12.8", "torch==2.13.0")
PROGRAMS: dict[str, dict[str, list[str]]] = {
    "train": {
        "jaxbooth": ["jaxbooth_train.py"],
        "jaxbooth-output-preservation": ["jaxbooth_train.py", "--prior", "output-preservation"],
        "jaxbooth-int8": ["jaxbooth_train.py", "--quantization", "int8"],
        "jaxbooth-nf4": ["jaxbooth_train.py", "--quantization", "nf4"],
        "jaxbooth-weight-anchor": ["jaxbooth_train.py", "--prior", "class-images", "weight-anchor"],
        "torch": ["torch_train.py", "--fused"],
        "torch-compile": ["torch_train.py", "--fused", "--compile"],
        "torch-vae": ["torch_train.py", "--vae"],
        "torch-vae-compile": ["torch_train.py", "--vae", "--compile"],
        "flax": ["flax_train.py"],
    },
    "sample": {
        "jaxbooth": ["jaxbooth_sample.py"],
        "torch": ["torch_sample.py"],
        "torch-compile": ["torch_sample.py", "--compile"],
        "flax": ["flax_sample.py"],
    },
}
FLAGS = {  # of this script, that each program takes as well
    "jaxbooth_train.py": ("lora_rank", "remat", "dispatch"),
    "torch_train.py": ("lora_rank", "remat"),
    "flax_train.py": (),
    "jaxbooth_sample.py": ("steps", "sampler"),
    "torch_sample.py": ("steps", "sampler"),
    "flax_sample.py": ("steps", "sampler"),
}


class Peer:
    """A subject in its own process.

    Attributes:
        name: what the table calls it.
        facts: what it said when it was ready, and `cold_seconds` from its start to the end of its first step.
    """

    def __init__(self, name: str, command: list[str], environment: dict[str, str]):
        self.name, self.began = name, time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE.parents[1]
        )
        self.command, self.facts = command, {}
        self.seconds: list[float] = []

    def answer(self) -> dict[str, Any]:
        """Reads one line of the process."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended with {self.process.wait()}; what it said is above: {' '.join(self.command)}")
        return json.loads(line)

    def wait(self) -> None:
        """Waits until the first step is done."""
        self.facts = self.answer()
        self.facts["cold_seconds"] = time.perf_counter() - self.began
        print(f"{self.name}: ready after {self.facts['cold_seconds']:.1f} s", file=sys.stderr)

    def run(self, count: int) -> float:
        """Lets it do `count` steps, and returns the seconds of one."""
        self.tell(f"run {count}")
        return self.answer()["seconds"] / count

    def tell(self, line: str) -> None:
        """Sends a line."""
        assert self.process.stdin
        print(line, file=self.process.stdin, flush=True)

    def end(self) -> None:
        """Takes the last figures and ends the process."""
        self.tell("end")
        self.facts |= self.answer()
        self.process.wait()


def environment() -> dict[str, str]:
    """Returns the variables of a subject: several may share one GPU, and none may take its memory in advance."""
    added = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | added


def peer_python(given: str | None) -> str:
    """Returns the interpreter that has diffusers 0.39; makes its environment when there is none."""
    if given:
        return given
    python = PEER_FOLDER / "bin" / "python"
    if not python.exists():
        print(f"making {PEER_FOLDER} for diffusers 0.39", file=sys.stderr)
        partial = PEER_FOLDER.with_name(PEER_FOLDER.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        venv.create(partial, with_pip=True)
        extra = "jax[cuda12]==0.10.2" if Path("/dev/nvidiactl").exists() else "jax==0.10.2"
        subprocess.run([partial / "bin" / "python", "-m", "pip", "install", "-q", *PEER_PACKAGES, extra], check=True)
        partial.rename(PEER_FOLDER)
    return str(python)


def command_of(arguments: argparse.Namespace, name: str, rows: int, folder: Path) -> list[str]:
    """Returns the command of a subject, with the flags that its program takes."""
    program, *flags = PROGRAMS[arguments.task][name]
    python = peer_python(arguments.flax_python) if name == "flax" else sys.executable
    command = [python, str(HERE / program), *flags]
    command += ["--model", arguments.model] if program.startswith("jaxbooth") else ["--folder", str(folder)]
    given = {"rows": rows} | {flag: getattr(arguments, flag) for flag in FLAGS[program]}
    for flag, value in given.items():
        command += [] if value is None else [f"--{flag.replace('_', '-')}", str(value)]
    return command


def start(arguments: argparse.Namespace, folder: Path) -> Iterator[Peer]:
    """Starts every subject with every number of rows, and jaxbooth once more with each set of compiler flags."""
    for rows, name in itertools.product(arguments.rows, arguments.subjects):
        for flags in ["", *arguments.xla_flags] if name == "jaxbooth" else [""]:
            title = " ".join(filter(None, (name, str(rows) if len(arguments.rows) > 1 else "", flags)))
            added = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"} if flags else {}
            yield Peer(title, command_of(arguments, name, rows, folder), environment() | added)


def measure(arguments: argparse.Namespace, folder: Path) -> list[Peer]:
    """Starts all subjects, lets them take turns, and ends them."""
    peers = []
    for peer in start(arguments, folder):
        peers.append(peer)
        if not arguments.together:
            peer.wait()
    if arguments.together:
        for peer in peers:
            peer.wait()
    counts = {peer.name: max(1, round(arguments.seconds / peer.run(2))) for peer in peers}
    for _ in range(arguments.rounds):
        for peer in peers:
            peer.seconds.append(peer.run(counts[peer.name]))
    for peer in peers:
        peer.end()
    return peers


def row_of(peer: Peer, flops_per_row: float | None) -> dict[str, Any]:
    """Returns a subject's figures."""
    rows = peer.facts["rows"]
    rates = sorted(rows / seconds for seconds in peer.seconds)
    chip = find_chip(peer.facts["device"])
    rate = statistics.median(rates)
    mfu = rate * flops_per_row / chip.peak_flops if flops_per_row and chip and chip.peak_flops else None
    return {
        "subject": peer.name, "images_per_second": rate, "slowest": rates[0], "fastest": rates[-1], "mfu": mfu,
        **peer.facts, "command": [Path(part).name if "/" in part else part for part in peer.command],
    }  # fmt: skip


def shown(value: float | None, form: str, scale: float = 1.0) -> str:
    """Formats a figure that may be missing."""
    return "" if value is None else format(value * scale, form)


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the figures as Markdown; ratios are to the first subject."""
    lines = ["| | images/s | slowest to fastest | ratio | MFU | peak GiB | outside | compile s | cold start s |"]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    first = rows[0]["images_per_second"]
    for row in rows:
        cells = [
            row["subject"],
            f"{row['images_per_second']:.2f}",
            f"{row['slowest']:.2f} to {row['fastest']:.2f}",
            f"{first / row['images_per_second']:.2f}",
            shown(row["mfu"], ".1%"),
            shown(row["peak_bytes"], ".2f", 2**-30),
            shown(row["outside"], ".1%"),
            shown(row.get("compile_seconds"), ".1f"),
            f"{row['cold_seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table and writes the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=PROGRAMS)
    parser.add_argument("--subjects", nargs="+", default=["jaxbooth", "torch"])
    parser.add_argument(
        "--model",
        default="demo",
        help=f"{', '.join(PUBLISHED_NAMES)}, demo, or a diffusers folder",
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[4], help="instance rows, beside as many prior rows; or images"
    )
    parser.add_argument("--lora-rank", type=int, default=None)
    parser.add_argument("--remat", default=None)
    parser.add_argument("--dispatch", type=int, default=None, help="steps a dispatch (jaxbooth)")
    parser.add_argument("--steps", type=int, default=None, help="network evaluations of an image")
    parser.add_argument("--sampler", default=None, choices=["dpmpp_2m", "ddpm"])
    parser.add_argument("--xla-flags", action="append", default=[], help="jaxbooth once more, with these XLA_FLAGS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--together", action="store_true", help="start all at once; compile times then mean less")
    parser.add_argument("--flax-python", help="an interpreter that has diffusers 0.39")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = ASSETS / "tiny-emoji" if arguments.model == "demo" else Path(arguments.model)
        if arguments.model in PUBLISHED:
            folder = Path(scratch)
            write_skeleton(arguments.model, folder)
        peers = measure(arguments, folder)
    flops = next((peer.facts["flops_per_row"] for peer in peers if "flops_per_row" in peer.facts), None)
    rows = [row_of(peer, flops) for peer in peers]
    counts = ", ".join(str(count) for count in dict.fromkeys(peer.facts["rows"] for peer in peers))
    print(f"{peers[0].facts['device']}, {arguments.model}, rows: {counts}")
    print(table(rows))
    if arguments.json:
        write_json(arguments.json, {"arguments": " ".join(sys.argv[1:]), "rows": rows})


if __name__ == "__main__":
    main()
