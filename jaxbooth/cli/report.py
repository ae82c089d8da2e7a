"""`jaxbooth report`: its flags."""

from typing import Annotated

import tyro

from jaxbooth.cli.parse import parse
from jaxbooth.config.section import Section
from jaxbooth.console.messages import print_plain


class ReportArguments(Section):
    """Write runs as one HTML page that needs no network: curves, sample images over the steps, settings, scores."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Run folders, also unfinished ones and gs://BUCKET/FOLDER; several are compared. The folder of a program that
    trains many subjects, alone, becomes an overview of them."""
    out: str | None = None
    """File to write; default: report.html in the run folder, or beside the first of several."""


def report_command(argv: list[str]) -> None:
    """Writes the page and says where it is."""
    arguments = parse(ReportArguments, argv, "jaxbooth report")
    from jaxbooth.report.report import make_report

    path = make_report(arguments.runs, arguments.out)
    print_plain(f"report: {path}")  # `print_result` would start a device, perhaps one in use
