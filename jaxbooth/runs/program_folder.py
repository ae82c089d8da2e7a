"""The folder of a program that trains many subjects: what is where, and the names of its subjects.

Each subject that has begun has an ordinary run folder in it, which is named after the subject.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jaxbooth.errors import UserError
from jaxbooth.runs.folder import CONFIG, RunFolder
from jaxbooth.storage.paths import plain_file_name
from jaxbooth.storage.remote import check_reachable
from jaxbooth.storage.similar import contains_file
from jaxbooth.storage.text import parse_json_object, read_lines

PROGRAM = "program.yaml"
MANIFEST = "manifest.jsonl"


@dataclass(frozen=True)
class ProgramFolder:
    """Paths of a program."""

    root: Path

    @property
    def program(self) -> Path:
        """The configuration that all subjects share."""
        return self.root / PROGRAM

    @property
    def manifest(self) -> Path:
        """One JSON line a subject, in order."""
        return self.root / MANIFEST

    @property
    def status(self) -> Path:
        """One JSON line a change of a subject; see `runs.status`."""
        return self.root / "status.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What is saved of the subjects in the slots, one file for each process that trains some."""
        return self.root / "checkpoints"

    @property
    def class_images(self) -> Path:
        """Images of the classes."""
        return self.root / "class_images"

    def run(self, name: str) -> RunFolder:
        """The run folder of a subject, which need not exist yet."""
        return RunFolder(self.root / name)


def is_program_folder(path: Path) -> bool:
    """Whether a folder is that of a program, and not of a single run.

    Raises:
        UserError: its object store cannot be reached.
    """
    check_reachable(path)
    return all(contains_file(path, name) for name in (PROGRAM, MANIFEST)) and not contains_file(path, CONFIG)


class SubjectNames(NamedTuple):
    """The subjects of a manifest, and how many of its lines name none."""

    names: list[str]
    unreadable: int


def read_subject_names(path: Path) -> SubjectNames:
    """Reads the names of a manifest, in order; a line that cannot be read or repeats a name is counted and left out.

    Raises:
        UserError: the file is missing or no text.
    """
    names: dict[str, None] = {}
    lines = [line for line in read_lines(path) if line.strip()]
    for line in lines:
        try:
            names[plain_file_name(parse_json_object(line, str(path)).get("name"), str(path))] = None
        except UserError:
            continue
    return SubjectNames(list(names), len(lines) - len(names))
