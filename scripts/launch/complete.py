"""Says whether a run is complete: exit code 0 if so, 143 if the same command should go on with it.

A stopped `jaxbooth train` exits with 0 as a finished one does; whoever starts it again has to ask the run folder.
143 is what SIGTERM makes of a program that does not handle it. A share of many subjects has code 3 if those that are
not complete have failed: going on would try them again. Every other code is a failure to find out.

    python scripts/launch/complete.py runs/dog
    python scripts/launch/complete.py gs://bucket/runs/dog
    python scripts/launch/complete.py runs/kitchen 2/8      # share 2 of 8 of the subjects of `jaxbooth train-many`
"""

import json
import sys
from contextlib import suppress

import yaml
from etils import epath

COMPLETE, FAILED, STOPPED = 0, 3, 128 + 15
SENTENCES = {
    COMPLETE: "complete",
    FAILED: "complete but for subjects that failed; status.jsonl says why, and the same command tries them again",
    STOPPED: "not complete; the same command continues it",
}


def complete(run: epath.Path) -> bool:
    """Whether `run` holds what a finished training leaves: its last checkpoint and, if wanted, its export."""
    config = run / "config.yaml"
    if not config.exists():
        return False
    settings = yaml.safe_load(config.read_text())
    # Orbax writes aside, under a name that is no number.
    steps = [int(step.name) for step in (run / "checkpoints").glob("*") if step.name.isdecimal()]
    exported = not settings.get("export", True) or (run / "export").exists()
    return max(steps, default=0) >= settings["train"]["steps"] and exported


def run_code(run: epath.Path) -> int:
    """Returns the exit code of a single run."""
    return COMPLETE if complete(run) else STOPPED


def share_code(root: epath.Path, shard: str) -> int:
    """Returns the exit code of a share of a manifest: whether every subject has a complete run, or else has failed."""
    manifest = root / "manifest.jsonl"
    if not manifest.exists():
        return STOPPED
    number, shards = map(int, shard.split("/"))
    names = [json.loads(line)["name"] for line in manifest.read_text().splitlines()]
    missing = {name for name in names[number - 1 :: shards] if not complete(root / name)}
    if not missing:
        return COMPLETE
    return FAILED if missing <= failed_subjects(root / "status.jsonl") else STOPPED


def failed_subjects(status: epath.Path) -> set[str]:
    """Returns the subjects whose last line in a status file says that they failed."""
    states = {}
    for line in status.read_text().splitlines() if status.exists() else []:
        with suppress(ValueError, KeyError):  # a line may be cut off
            entry = json.loads(line)
            states[entry["name"]] = entry["state"]
    return {name for name, state in states.items() if state == "failed"}


def main(argv: list[str]) -> int:
    """Answers for the folder in `argv` and returns the exit code."""
    if len(argv) not in (1, 2):
        print(f"complete.py takes a run folder and perhaps a share of it, not {len(argv)} arguments.", file=sys.stderr)
        return 2
    folder = epath.Path(argv[0])
    code = share_code(folder, argv[1]) if len(argv) == 2 else run_code(folder)
    print(f"{argv[0]} is {SENTENCES[code]}.")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
