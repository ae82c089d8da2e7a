"""`jaxbooth report`: run folders in, one HTML file out."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from pydantic import BaseModel, ConfigDict

from jaxbooth.errors import UserError
from jaxbooth.report.charts import COLOURS, library
from jaxbooth.report.render import GENERATOR, render
from jaxbooth.report.run_data import read_runs
from jaxbooth.runs.overlap import check_output
from jaxbooth.storage.disk import check_writable
from jaxbooth.storage.files import write_text
from jaxbooth.storage.remote import as_path, is_local

FILE = "report.html"
HEAD = 2000  # bytes of a file in which a report says that it is one


class ReportArguments(BaseModel):
    """Write runs as one HTML page that needs no network: curves, sample images over the steps, settings, scores."""

    model_config = ConfigDict(frozen=True)

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Run folders, also unfinished ones and gs://BUCKET/FOLDER; several are compared."""
    out: str | None = None
    """File to write; default: report.html in the run folder, or beside the first of several."""


def make_report(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes a report and returns its path. An earlier report there is replaced, nothing else is.

    Args:
        runs: run folders.
        out: default: report.html in the run folder, or beside the first of several.

    Raises:
        UserError: no run, too many, a folder that is no run or has no metrics yet, or a file in the way.
    """
    if not runs:
        raise UserError("name at least one run folder.")
    if len(runs) > COLOURS:
        raise UserError(f"{len(runs)} runs are too many to tell apart; name at most {COLOURS}.")
    target = as_path(out) if out is not None else default_file(runs)
    check_target(target)
    found = read_runs([os.fspath(run) for run in runs])
    for run in found:
        check_output(target, run.folder.root, run.config)
    library()
    write_text(target, render(found))
    return target


def default_file(runs: Sequence[str | os.PathLike[str]]) -> Path:
    """Returns where a report goes that nobody placed."""
    first = as_path(runs[0])
    return (first if len(runs) == 1 else first.parent) / FILE


def check_target(path: Path) -> None:
    """Raises UserError if there is something at `path` that is not a report."""
    if is_local(path):
        check_writable(path.parent, "the folder of --out")
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"--out {path} is {'a folder' if path.is_dir() else 'no regular file'}; name a file.")
    with path.open("rb") as file:
        head = file.read(HEAD)
    if GENERATOR.encode() not in head:
        raise UserError(f"{path} exists already and is not a report of jaxbooth; choose another file with --out.")
