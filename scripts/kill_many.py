"""Kills `train-many` again and again, lets it finish, and compares every subject with a run that was never killed.

    python scripts/kill_many.py --photos ../shared/dreambooth --kills 20 --processes 1
    python scripts/kill_many.py --photos ../shared/dreambooth --kills 20 --processes 2
    python scripts/kill_many.py --photos ../shared/dreambooth --kills 20 --processes 2 --joined

With several processes, each has a shard of the manifest in the same root, or they are joined in one JAX program. A kill
hits one of them at random. Where all subjects are done before the last kill, a new root goes on.
"""

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from bench_many import make_subjects

from jaxbooth.runs.metric_writer import read_metrics
from jaxbooth.runs.status import read_status

# Short dispatches and many saves, so that kills fall into all phases; few images, for they are not what is tested.
FLAGS = (
    "--lora.rank 4 --train.batch-size 1 --train.learning-rate 1e-3 --train.eps 1e-3 --train.steps-per-dispatch 2 "
    "--train.checkpoint-every 6 --data.num-class-images 4 --prior.steps 2 --validation.every 15 "
    "--validation.images-per-prompt 1 --validation.steps 2"
)
ENDING = 20  # seconds in which processes of one program end with the one that was killed
TOLERANCE = 1e-4  # of losses, relative: a subject may come back in another slot


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=Path("../shared/dreambooth"), help="the DreamBooth dataset")
    parser.add_argument("--out", type=Path, default=Path("runs/kill-many"))
    parser.add_argument("--subjects", type=int, default=6)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--lora-kind", choices=["lora", "lokr"], default="lora")
    parser.add_argument("--joined", action="store_true", help="the processes are one JAX program")
    parser.add_argument("--wait", type=float, default=20, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def start(arguments: argparse.Namespace, manifest: Path, root: Path, flags: list[str]) -> subprocess.Popen:
    """Starts one process, in a session of its own."""
    flags = [*FLAGS.split(), "--train.steps", str(arguments.steps), "--lora.kind", arguments.lora_kind, *flags]
    command = [sys.executable, "-m", "jaxbooth", "train-many", manifest, "demo", *flags, "--run-dir", root]
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True
    )


def start_all(arguments: argparse.Namespace, manifest: Path, root: Path) -> list[subprocess.Popen]:
    """Starts every process."""
    count, slots = arguments.processes, arguments.slots
    if not arguments.joined:
        shards = [f"--slots {slots} --shard {number}/{count}" for number in range(1, count + 1)]
        return [start(arguments, manifest, root, shard.split()) for shard in shards]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    places = [
        f"--slots {slots * count} --distributed.coordinator 127.0.0.1:{port} --distributed.num-processes {count} "
        f"--distributed.process-id {number}"
        for number in range(count)
    ]
    return [start(arguments, manifest, root, place.split()) for place in places]


def steps_done(root: Path, names: list[str]) -> int:
    """Returns the steps of all subjects that are in their logs."""
    return sum(len(read_metrics(root / name / "metrics.jsonl")) for name in names)


def torture(
    arguments: argparse.Namespace, manifest: Path, root: Path, names: list[str], draw: random.Random, before_it: int
) -> int:
    """Starts, kills and starts again until all is done, or there were enough kills; returns how many there were."""
    kills = before_it
    while kills < arguments.kills:
        running = start_all(arguments, manifest, root)
        began, before = time.monotonic(), steps_done(root, names)
        if draw.random() < 0.5:  # else it may come while the program starts
            while steps_done(root, names) == before and any(process.poll() is None for process in running):
                time.sleep(0.2)
        wait = time.monotonic() + draw.uniform(0, arguments.wait)
        while time.monotonic() < wait and any(process.poll() is None for process in running):
            time.sleep(0.1)
        alive = [process for process in running if process.poll() is None]
        if not alive:
            break
        victim = draw.choice(alive)
        os.killpg(victim.pid, signal.SIGKILL)
        victim.wait()
        kills += 1
        seconds, steps = time.monotonic() - began, steps_done(root, names) - before
        print(f"kill {kills} after {seconds:.1f} s: {steps} steps more", flush=True)
        for process in alive:
            if process is not victim:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(ENDING if arguments.joined else 0)  # they know of it, once they have met
                process.send_signal(signal.SIGTERM)
                process.wait()
    return kills


def finish(arguments: argparse.Namespace, manifest: Path, root: Path) -> None:
    """Lets every process come to its end."""
    codes = [process.wait() for process in start_all(arguments, manifest, root)]
    if any(codes):
        sys.exit(f"the processes ended with exit codes {codes}")


def compare(whole: Path, killed: Path, names: list[str], steps: int) -> float:
    """Returns the largest relative difference of losses; every subject has every step once."""
    largest = 0.0
    statuses = read_status(killed / "status.jsonl")
    for name in names:
        expected, found = (read_metrics(root / name / "metrics.jsonl") for root in (whole, killed))
        assert [line["step"] for line in found] == list(range(1, steps + 1)), name
        assert statuses[name].state == "done", statuses[name]
        assert list((killed / name / "export").glob("*.safetensors"))
        losses = [np.array([line["loss"] for line in lines]) for lines in (expected, found)]
        largest = max(largest, float(np.abs(losses[1] / losses[0] - 1).max()))
    return largest


def main() -> None:
    """Runs both, and compares."""
    arguments = parse()
    manifest = make_subjects(arguments.photos, arguments.out, arguments.subjects)
    names = [f"subject-{number:02d}" for number in range(arguments.subjects)]
    whole = arguments.out / "whole"
    if not whole.exists() and start(arguments, manifest, whole, ["--slots", str(arguments.slots)]).wait():
        sys.exit("the run that is not killed failed")
    draw, kills, roots, largest = random.Random(arguments.seed), 0, 0, 0.0
    while kills < arguments.kills:
        killed = arguments.out / f"killed-{roots}"
        shutil.rmtree(killed, ignore_errors=True)
        kills = torture(arguments, manifest, killed, names, draw, kills)
        finish(arguments, manifest, killed)
        largest, roots = max(largest, compare(whole, killed, names, arguments.steps)), roots + 1
    print(f"{kills} kills, {roots} roots of {len(names)} subjects: losses differ by {largest:.1e} at most")
    assert largest < TOLERANCE


if __name__ == "__main__":
    main()
