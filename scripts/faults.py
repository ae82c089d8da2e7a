"""Kills trainings and shows that nothing is lost: the demo model on this machine, loopback only, a few minutes.

    python scripts/faults.py --kills 30
    python scripts/faults.py --kills 6 --processes 2

Trains once without a stop. Then trains again, again and again, each time in a new folder, and kills: with SIGKILL and
SIGTERM, at random moments, while class images are made and while a checkpoint is written. After every kill the same
command continues (with another number of steps per dispatch). At the end of a round the train state, the class
images and the logged losses must equal those of the run that nobody stopped, bit for bit. Prints the kills, what was
lost (must be nothing) and how many steps were done twice; exits with 1 if something was lost.
"""

import argparse
import logging
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from jaxbooth.data.class_images import MANIFEST
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.folder import RunFolder, open_run
from jaxbooth.runs.metric_writer import read_metrics
from jaxbooth.runs.restore import abstract_run_state, read_base
from jaxbooth.sharding import make_mesh

STEPS, EVERY, NUM_CLASS_IMAGES = 48, 8, 16
COMMAND = (
    "train", "demo", "--train.steps", STEPS, "--train.checkpoint-every", EVERY, "--train.batch-size", 2,
    "--data.num-class-images", NUM_CLASS_IMAGES, "--prior.steps", 2, "--prior.sample-batch-size", 2, "--mesh.data", -1,
    "--validation.prompts", "a sks cat", "--validation.images-per-prompt", 1, "--validation.steps", 1,
    "--validation.every", 10 * STEPS, "--no-export",
)  # fmt: skip
PER_DISPATCH = (1, 3, 8, 10)  # each is a program to compile, once
LONGEST = 900  # seconds that a training, or the end of the others after one was killed, may take
SURVIVAL = 15  # seconds after which the processes beside a killed one have ended
KILLS_OF_A_ROUND = 6
RESUMED, SAVED = re.compile(r"resumed at step (\d+)"), re.compile(r"stopped and saved at step (\d+)")
GONE, BELOW_PYTHON = re.compile(r"error: process \d+ .*is gone"), re.compile(r"Traceback|\*\*\* Check|\.cc:\d")


@dataclass
class Score:
    """What happened so far."""

    kills: dict[str, int] = field(default_factory=dict)
    losses: list[str] = field(default_factory=list)
    repeated: int = 0


@dataclass
class Training:
    """The processes of one start of the command, and the file that takes what they print."""

    processes: list[subprocess.Popen[bytes]]
    log: Path

    def alive(self) -> bool:
        """Whether a process still runs."""
        return any(process.poll() is None for process in self.processes)

    def end(self) -> list[int]:
        """Waits, and returns the exit codes; processes that do not end by themselves are killed and count as 999."""
        deadline = time.monotonic() + LONGEST
        codes = []
        for process in self.processes:
            try:
                codes.append(process.wait(max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                codes.append(999)
        return codes

    def said(self) -> str:
        """Everything printed so far."""
        return self.log.read_text()


def start(run_dir: Path, count: int, per_dispatch: int) -> Training:
    """Starts the training."""
    flags = [*COMMAND, "--run-dir", run_dir, "--train.steps-per-dispatch", per_dispatch]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    log, processes = run_dir.with_suffix(".log"), []
    with log.open("wb") as out:
        for index in range(count):
            address = ["--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.num-processes", count]
            together = [*address, "--distributed.process-id", index] if count > 1 else []
            command = [sys.executable, "-m", "jaxbooth", *map(str, [*flags, *together])]
            processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))
    return Training(processes, log)


def steps_on_disk(run: RunFolder) -> int:
    """The newest whole checkpoint's step, or 0."""
    return max((int(path.name) for path in run.checkpoints.glob("*") if path.name.isdigit()), default=0)


def wait_for(training: Training, moment: Callable[[], bool]) -> None:
    """Watches until a moment has come, the training has ended, or time is up."""
    deadline = time.monotonic() + LONGEST
    while training.alive() and time.monotonic() < deadline and not moment():
        time.sleep(0.002)


def moments(run: RunFolder, chance: random.Random, seconds: float) -> dict[str, Callable[[], bool]]:
    """Returns kind -> when to kill.

    Args:
        seconds: that a training without a stop takes.
    """
    begun, known = time.monotonic(), steps_on_disk(run)
    after, images = chance.uniform(0, 0.6 * seconds), chance.randrange(NUM_CLASS_IMAGES)
    wait, first = chance.choice((0.0, 0.01, 0.05, 0.2)), []

    def writing() -> bool:
        if not first and any("tmp" in path.name for path in run.checkpoints.glob("*")):
            first.append(time.monotonic())
        return bool(first) and time.monotonic() >= first[0] + wait

    return {
        "any moment": lambda: time.monotonic() >= begun + after,
        "prior": lambda: (run.root / "prior" / MANIFEST).exists() and len(class_files(run)) >= images,
        "checkpoint": writing,
        "step": lambda: steps_on_disk(run) > known,
    }


def class_files(run: RunFolder) -> list[Path]:
    """The class images, and what is being written of them."""
    return list((run.root / "prior").glob("*class-*"))


def kill(run: RunFolder, training: Training, kind: str, number: signal.Signals, victim: int, score: Score) -> None:
    """Sends the signal to one process, waits for the end of all, and says what was lost already."""
    if not training.alive():
        return
    training.processes[victim].send_signal(number)
    name = f"{number.name} {kind}"
    score.kills[name] = score.kills.get(name, 0) + 1
    began = time.monotonic()
    codes = training.end()
    if 999 in codes:
        score.losses.append(f"{name}: the processes did not end by themselves ({codes})")
    if number == signal.SIGKILL and len(codes) > 1:
        check_survivors(training, codes, victim, time.monotonic() - began, name, score)
    if number == signal.SIGTERM and set(codes) != {0}:
        score.losses.append(f"{name}: exit codes {codes}\n{training.said()[-2000:]}")
    if number == signal.SIGTERM and "again to continue" not in training.said() and "done:" not in training.said():
        score.losses.append(f"{name}: it did not say how to continue\n{training.said()[-2000:]}")
    saved = SAVED.search(training.said())
    if saved and steps_on_disk(run) != int(saved[1]):
        score.losses.append(f"{name}: said {saved[0]}, but the newest checkpoint is {steps_on_disk(run)}")


def check_survivors(training: Training, codes: list[int], victim: int, seconds: float, name: str, score: Score) -> None:
    """Checks that the processes beside a killed one say so in a sentence each, and end with 1, in time."""
    if set(codes[:victim] + codes[victim + 1 :]) == {0}:
        return  # they were done
    if set(codes[:victim] + codes[victim + 1 :]) != {1} or seconds > SURVIVAL:
        score.losses.append(f"{name} of process {victim}: exit codes {codes} after {seconds:.0f} s")
    if not GONE.search(training.said()) or BELOW_PYTHON.search(training.said()):
        score.losses.append(f"{name} of process {victim}: it was told so\n{training.said()[-2000:]}")


def check_resumed(training: Training, newest: int, logged: int, score: Score) -> None:
    """Compares where a training began with what was on disk before it did."""
    resumed = RESUMED.search(training.said())
    if resumed:
        score.repeated += max(0, logged - int(resumed[1]))
        if int(resumed[1]) < newest:
            score.losses.append(f"resumed at {resumed[1]}, but {newest} was saved")


def play_round(
    run: RunFolder, kinds: list[str], count: int, seconds: float, chance: random.Random, score: Score
) -> None:
    """Kills a training once for every kind, then lets it end."""
    for kind in [*kinds, ""]:
        if steps_on_disk(run) == STEPS:
            break  # it was quicker than a kill
        newest, lines = steps_on_disk(run), read_metrics(run.metrics)
        training = start(run.root, count, chance.choice(PER_DISPATCH))
        if kind:
            wait_for(training, moments(run, chance, seconds)[kind])
            number = chance.choice((signal.SIGKILL, signal.SIGTERM))
            kill(run, training, kind, number, chance.randrange(count), score)
        codes = training.end()
        check_resumed(training, newest, lines[-1]["step"] if lines else 0, score)
        if not kind and set(codes) != {0}:
            score.losses.append(f"the last start ended with {codes}\n{training.said()[-2000:]}")
        done = f"{sum(score.kills.values())} kills, checkpoint {steps_on_disk(run)} of {STEPS}, exit {codes}"
        print(f"  {kind or 'to the end'}: {done}", flush=True)


def differences(run: RunFolder, reference: RunFolder) -> list[str]:
    """Returns what of a run is not, bit for bit, what the reference has."""
    states, mesh = [], make_mesh(devices=jax.devices()[:1])
    for folder in (run, reference):
        _, config = open_run(folder.root)
        checkpoints = Checkpoints(folder.checkpoints)
        states.append(checkpoints.restore(abstract_run_state(config, read_base(config), mesh)))
        checkpoints.close()
    different = [] if states[0][1] == states[1][1] == STEPS else [f"steps {states[0][1]} and {states[1][1]}"]
    leaves = zip(jax.tree.leaves(states[0][0]), jax.tree.leaves(states[1][0]), strict=True)
    unequal = sum(not np.array_equal(one, other) for one, other in leaves)
    different += [f"{unequal} arrays of the state"] if unequal else []
    images = [{path.name: path.read_bytes() for path in class_files(folder)} for folder in (run, reference)]
    different += [] if images[0] == images[1] else ["the class images"]
    losses = [[(line["step"], line["loss"]) for line in read_metrics(folder.metrics)] for folder in (run, reference)]
    different += [] if losses[0] == losses[1] and len(losses[0]) == STEPS else ["the logged losses"]
    return different


def main() -> None:
    """Trains without a stop, plays the rounds and prints the score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1, help="of each training")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments, as far as a clock allows")
    parser.add_argument("--out", type=Path, help="folder for the runs; default: a temporary one")
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="jaxbooth-faults-"))
    out.mkdir(parents=True, exist_ok=True)
    chance, score = random.Random(arguments.seed), Score()
    logging.getLogger("absl").setLevel(logging.CRITICAL)

    reference = RunFolder(out / "reference")
    began = time.monotonic()
    training = start(reference.root, arguments.processes, PER_DISPATCH[-1])
    if set(training.end()) != {0}:
        sys.exit(f"the training without a stop failed:\n{training.said()[-3000:]}")
    seconds = time.monotonic() - began
    print(f"without a stop: {STEPS} steps in {seconds:.0f} s", flush=True)

    left, number = arguments.kills, 0
    while left > 0:
        number += 1
        others = ["any moment", "checkpoint", "step", "checkpoint", "any moment"]
        kinds = ["prior", *others][: min(left, KILLS_OF_A_ROUND)]
        before = sum(score.kills.values())
        print(f"round {number}", flush=True)
        run = RunFolder(out / f"round-{number}")
        play_round(run, kinds, arguments.processes, seconds, chance, score)
        score.losses += [f"round {number}: {name} differ" for name in differences(run, reference)]
        left -= max(1, sum(score.kills.values()) - before)

    for kind, times in sorted(score.kills.items()):
        print(f"{times:4} {kind}")
    print(f"kills {sum(score.kills.values())}, losses {len(score.losses)}, steps repeated {score.repeated}")
    for loss in score.losses:
        print(f"LOST {loss}")
    sys.exit(1 if score.losses else 0)


if __name__ == "__main__":
    main()
