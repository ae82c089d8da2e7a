"""Launchers without a cluster: programs that stand in for its own, and what runs leave on disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[1] / "scripts" / "launch"
USED = (
    "NAME", "IMAGE", "RUN_DIR", "CACHE_DIR", "PHOTOS", "SPOT", "TOPOLOGY", "ZONE", "PROJECT", "MANIFEST", "SHARD",
    "MOUNT", "SLURM_JOB_ID",
)  # fmt: skip
# What stands in for a cluster's own program: it notes its arguments, and answers what a test has written.
RECORD = """#!/usr/bin/env bash
{here}/python -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >>"{here}/calls"
answer="{here}/answer-$4"
[[ ! -f $answer ]] || {{ cat "$answer" >&"$(cat "{here}/channel")"; exit "$(cat "{here}/code")"; }}
"""


class Programs:
    """A folder at the front of PATH with recording programs."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("python", "python3"):
            self.add(name, f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')

    def add(self, name: str, source: str) -> None:
        """Puts a program there."""
        path = self.folder / name
        path.write_text(source)
        path.chmod(0o755)

    def record(self, name: str, verb: str = "", answer: str = "", code: int = 0) -> None:
        """Puts a recording program there, whose call with `verb` fourth gives `answer`, on stderr if it fails."""
        (self.folder / f"answer-{verb}").write_text(answer)
        (self.folder / "code").write_text(str(code))
        (self.folder / "channel").write_text("2" if code else "1")
        self.add(name, RECORD.format(here=self.folder))

    def calls(self) -> list[list[str]]:
        """Returns the arguments of every call."""
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def run(self, script: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Runs a launcher to its end."""
        env = {name: value for name, value in os.environ.items() if name not in USED} | settings
        env["PATH"] = f"{self.folder}:{env['PATH']}"
        command = ["bash", str(FOLDER / script), *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


def make_run(folder: Path, done: int, exported: bool, export: bool = True) -> Path:
    """Makes what a run of 4 steps leaves on disk after `done`."""
    (folder / "checkpoints" / str(done)).mkdir(parents=True)
    (folder / "checkpoints" / "9.orbax-checkpoint-tmp-1").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"train": {"steps": 4}, "export": export}))
    if exported:
        (folder / "export").mkdir()
    return folder
