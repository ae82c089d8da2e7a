"""Says whether a run is complete: exit code 0 if so, 143 if the same command should go on with it.

A stopped `jaxbooth train` exits with 0 as a finished one does; whoever starts it again has to ask the run folder.
143 is what SIGTERM makes of a program that does not handle it. Every other code is a failure to find out.

    python scripts/launch/complete.py runs/dog
    python scripts/launch/complete.py gs://bucket/runs/dog
"""

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


def main(argv: list[str]) -> int:
    """Answers for the folder in `argv` and returns the exit code."""
    if len(argv) != 1:
        print(f"complete.py takes one run folder, not {len(argv)} arguments.", file=sys.stderr)
        return 2
    answer = complete(epath.Path(argv[0]))
    print(f"{argv[0]} is {'complete' if answer else 'not complete; the same command continues it'}.")
    return 0 if answer else STOPPED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
