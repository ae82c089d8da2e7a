"""Many subjects in one program against one run after another: with everything, and in steady state.

    python scripts/bench_many.py whole --photos ../shared/dreambooth --model demo --subjects 16 --slots 8
    python scripts/bench_many.py steady --photos ../shared/dreambooth --model demo --slots 1 2 4 8 16

`whole` times a command for each subject, one after another, and one `train-many` for all of them; both load the model,
compile, sample and export; each run makes class images of its own, and `train-many` those of the class once, unless
`--class-images there` leaves that out. `steady` times the compiled step alone, with every number
of slots in turn, again and again, so that a machine that is slow for a while is slow for all. Both print JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import yaml
from PIL import Image, ImageOps

from jaxbooth.assets import DEMO_SUBJECT
from jaxbooth.config.load import load_config
from jaxbooth.config.manifest import read_manifest
from jaxbooth.console.output import output
from jaxbooth.many.device_slots import DeviceSlots
from jaxbooth.many.program import make_program
from jaxbooth.many.root import complete_subject
from jaxbooth.many.slot_run import open_slot_run
from jaxbooth.many.train import encode_all
from jaxbooth.runs.program_folder import ProgramFolder
from jaxbooth.runs.restore import read_base
from jaxbooth.sharding import make_mesh
from jaxbooth.training.slot_rows import stack_rows

FOLDERS = ("dog", "backpack", "duck_toy")
VARIANTS = (  # of the same photos, as further subjects
    lambda image: image,
    lambda image: image.crop((0, 0, image.width * 3 // 4, image.height * 3 // 4)),
    ImageOps.invert,
    ImageOps.solarize,
)
PHOTOS, CLASS_PROMPT = 4, "an emoji of a cat"


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("whole", "steady"))
    parser.add_argument("--photos", type=Path, default=Path("../shared/dreambooth"), help="the DreamBooth dataset")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-many"))
    parser.add_argument("--model", default="demo")
    parser.add_argument("--subjects", type=int, default=16)
    parser.add_argument("--slots", type=int, nargs="+", default=[8])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--alone", type=int, help="of `whole`: runs to time, if not one for each subject")
    parser.add_argument("--class-images", choices=("own", "there"), default="own", help="of `whole`: made, or there")
    parser.add_argument("--rounds", type=int, default=5, help="of `steady`")
    return parser.parse_args()


def make_subjects(photos: Path, out: Path, count: int) -> Path:
    """Writes photos of subjects, real ones and variants of them, and their manifest; returns its path."""
    sources = [DEMO_SUBJECT, *(photos / name for name in FOLDERS)]
    entries = []
    for number in range(count):
        source, variant = sources[number % len(sources)], VARIANTS[number // len(sources) % len(VARIANTS)]
        name = f"subject-{number:02d}"
        folder = out / "photos" / name
        folder.mkdir(parents=True, exist_ok=True)
        files = sorted(path for path in source.iterdir() if path.suffix in (".png", ".jpg", ".webp"))[:PHOTOS]
        for index, path in enumerate(files):
            variant(ImageOps.exif_transpose(Image.open(path)).convert("RGB")).save(folder / f"{index}.png")
        entries.append(
            {"name": name, "instance_dir": str(folder.absolute()), "instance_prompt": "an emoji of a sks cat"}
        )
    manifest = out / "subjects.yaml"
    manifest.write_text(yaml.safe_dump([entry | {"class_prompt": CLASS_PROMPT} for entry in entries]))
    return manifest


def flags(arguments: argparse.Namespace, out: Path) -> list[str]:
    """Returns what all runs share."""
    values = {
        "--lora.rank": arguments.rank, "--train.steps": arguments.steps, "--train.batch-size": 1,
        "--validation.every": arguments.steps,
    }  # fmt: skip
    if arguments.class_images == "there":
        values["--data.class-dir"] = out / "class" / arguments.model
    return [str(part) for pair in values.items() for part in pair]


def run(*command: object) -> float:
    """Runs a command of jaxbooth, and returns its seconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "jaxbooth", *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def whole(arguments: argparse.Namespace) -> dict:
    """Times both ways, a quarter of the single runs before, between and after the parts of the other."""
    out, shared = arguments.out, flags(arguments, arguments.out)
    manifest = make_subjects(arguments.photos, out, arguments.subjects)
    entries = yaml.safe_load(manifest.read_text())

    def alone(entry: dict, steps: int | None = None) -> float:
        own = [f"--data.{key.replace('_', '-')}={value}" for key, value in entry.items() if key != "name"]
        extra = [f"--train.steps={steps}", f"--validation.every={steps}"] if steps else []
        name = f"alone-{entry['name']}" if steps is None else "warm"
        return run("train", arguments.model, *own, *shared, *extra, "--run-dir", out / arguments.model / name)

    alone(entries[0], steps=2)  # whatever the machine keeps of compiled programs, and class images if they are shared
    timed = entries[: arguments.alone or len(entries)]
    half = len(timed) // 2
    seconds = [alone(entry) for entry in timed[:half]]
    root = out / arguments.model / f"many-{arguments.slots[0]}"
    together = run("train-many", manifest, arguments.model, *shared, "--slots", arguments.slots[0], "--run-dir", root)
    seconds += [alone(entry) for entry in timed[half:]]
    rates = len(seconds) / sum(seconds), len(entries) / together
    return {
        "alone_seconds": round(sum(seconds), 1),
        "alone_each": [round(value, 1) for value in seconds],
        "together_seconds": round(together, 1),
        "subjects_per_hour_alone": round(3600 * rates[0], 1),
        "subjects_per_hour_together": round(3600 * rates[1], 1),
        "ratio": round(rates[1] / rates[0], 2),
    }


def steady(arguments: argparse.Namespace) -> dict:
    """Times the compiled dispatch of each number of slots, in turn."""
    out, largest = arguments.out / "steady", max(arguments.slots)
    manifest = make_subjects(arguments.photos, out, largest)
    config = load_config(arguments.model, {"run_dir": str(out / arguments.model), "lora.rank": arguments.rank,
                                           "train.batch_size": 1, "train.steps": 1000})  # fmt: skip
    mesh, base = make_mesh(), read_base(config)
    folder = ProgramFolder(out / arguments.model)
    subjects = [complete_subject(subject, folder, base) for subject in read_manifest(manifest, config)]
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    encoded = encode_all(subjects, base, mesh) if base.text.runs_once else None
    dispatches = []
    for slots in arguments.slots:
        program = make_program(subjects[0].config, base, mesh, slots, subjects[0].config, encoded, folder.checkpoints)
        device_slots, runs = DeviceSlots(mesh, slots, program.example), []
        for slot, subject in enumerate(subjects[:slots]):
            with output.muted():
                one = open_slot_run(program, subject.name, subject.config, None, lambda: None)
            device_slots.enter(slot, one.state, (one.data.text, one.data.frozen_text), one.key)
            runs.append(one.rows)
            one.close()
        dispatches.append((slots, program, device_slots, runs))
    count = config.train.steps_per_dispatch
    seconds: dict[int, list[float]] = {slots: [] for slots in arguments.slots}
    for _ in range(arguments.rounds + 1):  # the first one compiles
        for slots, program, device_slots, runs in dispatches:
            rows = device_slots.place_rows(stack_rows(runs, [0] * slots, [count] * slots, count))
            text, keys = device_slots.place_text()
            given = (program.step_frozen, text, rows, keys, np.int32(count))
            compiled = program.compiled_for(device_slots.state, *given)
            began = time.monotonic()
            device_slots.state, _ = jax.block_until_ready(compiled(device_slots.state, *given))
            seconds[slots].append((time.monotonic() - began) / count)
    rates = {slots: slots / statistics.median(values[1:]) for slots, values in seconds.items()}
    first = rates[arguments.slots[0]]
    return {f"{slots} slots": {"subject_steps_per_second": round(rate, 3), "ratio": round(rate / first, 2)}
            for slots, rate in rates.items()}  # fmt: skip


if __name__ == "__main__":
    chosen = parse()
    print(json.dumps(whole(chosen) if chosen.what == "whole" else steady(chosen), indent=2))
