"""Says whether a run is complete: exit code 0 if so, 143 if the same command should go on with it.

A stopped `jaxbooth train` exits with 0 as a finished one does; whoever starts it again has to ask the run folder.
143 is what SIGTERM makes of a program that does not handle it. Every other code is a failure to find out.

    python scripts/launch/complete.py runs/dog
    python scripts/launch/complete.py gs://bucket/runs/dog
    python scripts/launch/complete.py runs/kitchen 2/8      # share 2 of 8 of the subjects of `jaxbooth train-many`
"""

import json
import sys

import yaml
from etils import epath

STOPPED = 128 + 15


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


def all_complete(root: epath.Path, shard: str) -> bool:
    """Whether every subject of a share of a manifest has a complete run."""
    manifest = root / "manifest.jsonl"
    if not manifest.exists():
        return False
    number, shards = map(int, shard.split("/"))
    names = [json.loads(line)["name"] for line in manifest.read_text().splitlines()]
    return all(complete(root / name) for name in names[number - 1 :: shards])


def main(argv: list[str]) -> int:
    """Answers for the folder in `argv` and returns the exit code."""
    if len(argv) not in (1, 2):
        print(f"complete.py takes a run folder and perhaps a share of it, not {len(argv)} arguments.", file=sys.stderr)
        return 2
    folder = epath.Path(argv[0])
    answer = complete(folder) if len(argv) == 1 else all_complete(folder, argv[1])
    print(f"{argv[0]} is {'complete' if answer else 'not complete; the same command continues it'}.")
    return 0 if answer else STOPPED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
