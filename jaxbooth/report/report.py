"""Writes the report of one or several runs, or the overview of a program's many subjects, to an HTML file."""

import os
from collections.abc import Sequence
from pathlib import Path

from jaxbooth.errors import UserError
from jaxbooth.report.charts import COLOURS, import_vl_convert
from jaxbooth.report.overview import render_overview
from jaxbooth.report.render import FILE, GENERATOR, render
from jaxbooth.report.run_data import read_runs
from jaxbooth.runs.overlap import FlagPath, check_output, refuse_inside
from jaxbooth.runs.program_folder import ProgramFolder, is_program_folder
from jaxbooth.storage.disk import check_writable
from jaxbooth.storage.files import write_text
from jaxbooth.storage.remote import as_path, is_local

HEAD_BYTES = 2000  # at the start of a file, among which `GENERATOR` is in a report


def make_report(runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes a report and returns its path. An earlier report there is replaced, nothing else is.

    Args:
        runs: run folders, or the folder of a program that trains many subjects.
        out: default: report.html in the run folder, or beside the first of several.

    Raises:
        UserError: no run, too many, a folder that is no run or has no metrics yet, or a file in the way.
    """
    if not runs:
        raise UserError("name at least one run folder.")
    programs = [run for run in runs if is_program_folder(as_path(run))]
    if programs and len(runs) > 1:
        raise UserError(f"{programs[0]} holds the runs of many subjects; name it alone, or name runs in it to compare.")
    if len(runs) > COLOURS:
        raise UserError(f"{len(runs)} runs are too many to tell apart; name at most {COLOURS}.")
    target = as_path(out) if out is not None else default_file(runs)
    check_target(target)
    if programs:
        program = ProgramFolder(as_path(programs[0]))
        for part in (program.checkpoints, program.class_images):
            refuse_inside(FlagPath("--out", target), FlagPath("a folder of the program,", part))
        write_text(target, render_overview(program, target))
        return target
    run_data = read_runs([os.fspath(run) for run in runs])
    for run in run_data:
        check_output(target, run.folder.root, run.config)
    import_vl_convert()
    write_text(target, render(run_data))
    return target


def default_file(runs: Sequence[str | os.PathLike[str]]) -> Path:
    """Returns the path of a report without --out."""
    first = as_path(runs[0])
    return (first if len(runs) == 1 else first.parent) / FILE


def check_target(path: Path) -> None:
    """Raises UserError if `path` cannot be written, or holds something else than a report."""
    if is_local(path):
        check_writable(path.parent, "the folder of --out")
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"--out {path} is {'a folder' if path.is_dir() else 'no regular file'}; name a file.")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if GENERATOR.encode() not in head:
        raise UserError(f"{path} exists already and is not a report of jaxbooth; choose another file with --out.")
