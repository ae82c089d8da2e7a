"""The overview of a program that trains many subjects: one page with each subject's newest images and metrics.

The program may still be running, and what is missing or damaged is said on the page.
"""

import importlib.metadata
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.console.messages import pluralize
from jaxbooth.errors import UserError, printable
from jaxbooth.report.charts import format_value, natural_order, without_bins
from jaxbooth.report.curves import CHART_STYLES, chart_style, read_curves
from jaxbooth.report.images import EmbeddedImage, EmbeddedSize, embed, read_image
from jaxbooth.report.render import FILE, GENERATOR, environment, format_time
from jaxbooth.report.settings import describe_trained
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.program_folder import MANIFEST, PROGRAM, ProgramFolder, read_subject_names
from jaxbooth.runs.status import StateCounts, SubjectStatus, read_status
from jaxbooth.storage.remote import is_local

MAX_CARDS = 300  # subjects; more are a table, whose images are smaller so that thousands fit into the page
CARD_IMAGE, ROW_IMAGE = EmbeddedSize(160, 72), EmbeddedSize(96, 66)
MAX_FAILED = 50  # links at the top of the page


@dataclass
class SubjectOverview:
    """One subject.

    Attributes:
        state: of its status; where that is lost, what its folder looks like.
        step: the last one that is logged.
        steps: how many there will be; None: unknown.
        error: why it failed.
        loss: of the last step that logged one, as text.
        metrics: title -> the value of the last validation that has it, as text.
        image: the newest sample images.
        image_step: the step in their file's name.
        link: the run's report, or its folder; None before the subject begins.
        problems: what cannot be read, in sentences.
    """

    name: str
    state: str
    step: int
    steps: int | None
    error: str
    loss: str = ""
    metrics: dict[str, str] = field(default_factory=dict)
    image: EmbeddedImage | None = None
    image_step: str = ""
    link: str | None = None
    problems: list[str] = field(default_factory=list)


class Overview(NamedTuple):
    """What the page shows.

    Attributes:
        details: of the program, name -> text.
        problems: what cannot be read, in sentences.
    """

    name: str
    details: dict[str, str]
    counts: StateCounts
    subjects: list[SubjectOverview]
    problems: list[str]


def render_overview(folder: ProgramFolder, page: Path) -> str:
    """Returns the page.

    Args:
        page: where it will be, which decides its links.

    Raises:
        UserError: the manifest cannot be read.
    """
    overview = read_overview(folder, page)
    failed = [(number, each.name) for number, each in enumerate(overview.subjects) if each.state == "failed"]
    view = overview._asdict() | {
        "generator": Markup(GENERATOR),
        "version": importlib.metadata.version("jaxbooth"),
        "created": format_time(datetime.now(UTC)),
        "columns": order_metrics({title for subject in overview.subjects for title in subject.metrics}),
        "as_cards": len(overview.subjects) <= MAX_CARDS,
        "failed": failed[:MAX_FAILED],
    }
    return environment().get_template("overview.html").render(view)


def read_overview(folder: ProgramFolder, page: Path) -> Overview:
    """Reads what the page shows; see `render_overview`."""
    names, unreadable = read_subject_names(folder.manifest)
    left_out = f"{MANIFEST}: left out {pluralize(unreadable, 'line')} without a usable name."
    problems = [left_out] if unreadable else []
    config, statuses = None, {}
    try:
        config = load_config(folder.program)
    except UserError as error:
        problems.append(f"{PROGRAM} cannot be read: {printable(str(error))}")
    try:
        statuses = read_status(folder.status)
    except UserError as error:
        problems.append(printable(str(error)))
    size = CARD_IMAGE if len(names) <= MAX_CARDS else ROW_IMAGE
    base = relative_url(folder.root, page)
    steps = config.train.steps if config else None

    def read(name: str) -> SubjectOverview:
        return read_subject(folder.run(name), first_view(name, statuses.get(name), steps), size, base)

    with ThreadPoolExecutor(os.cpu_count()) as threads:  # Pillow decodes and encodes outside of Python's lock
        subjects = list(threads.map(read, names))
    details = program_details(folder, config, statuses)
    counts = StateCounts(**Counter(subject.state for subject in subjects))
    return Overview(printable(folder.root.name), details, counts, subjects, problems)


def program_details(
    folder: ProgramFolder, config: Config | None, statuses: Mapping[str, SubjectStatus]
) -> dict[str, str]:
    """Returns what all subjects share, and when the last of them changed."""
    details = {}
    if config:
        details |= {
            "base model": config.model + (f" at {config.revision}" if config.revision else ""),
            "trained": describe_trained(config),
            "resolution": f"{config.data.resolution} px" if config.data.resolution else "",
            "steps": str(config.train.steps),
        }
    last = max((status.time for status in statuses.values()), default=None)
    details["last change"] = format_seconds(last)
    details["folder"] = printable(str(folder.root))
    return {name: text for name, text in details.items() if text}


def format_seconds(seconds: float | None) -> str:
    """Writes a time that a file gives in seconds since 1970; nothing if it is none."""
    try:
        return format_time(datetime.fromtimestamp(seconds, UTC)) if seconds is not None else ""
    except (ValueError, OverflowError, OSError):
        return ""


def first_view(name: str, status: SubjectStatus | None, steps: int | None) -> SubjectOverview:
    """Returns a subject as its status describes it; one without a status is queued, until its folder says more.

    Args:
        steps: of the program.
    """
    if status is None:
        return SubjectOverview(name, "queued", 0, steps, "")
    return SubjectOverview(name, status.state, status.step or 0, status.steps or steps, printable(status.error or ""))


def read_subject(run: RunFolder, subject: SubjectOverview, size: EmbeddedSize, base: str | None) -> SubjectOverview:
    """Adds what a subject's run folder holds.

    Args:
        size: of its image.
        base: URL of the program's folder, if the page can link to it.
    """
    try:
        if not run.root.is_dir():
            if subject.state in ("running", "done"):
                subject.problems.append("It has no run folder.")
            return subject
        add_images(run, subject, size)
        add_metrics(run, subject)
        if subject.state == "queued" and subject.step:
            subject.state = "done" if run.is_exported else "running"
        if base is not None:
            report = FILE if (run.root / FILE).is_file() else ""
            subject.link = f"{base}{quote(subject.name)}/{report}"
    except (UserError, OSError) as error:
        subject.problems.append(f"Its folder cannot be read: {printable(str(error))}")
    return subject


def add_metrics(run: RunFolder, subject: SubjectOverview) -> None:
    """Adds the last values of a run's logs.

    Raises:
        UserError: a log is no regular file.
    """
    curves = read_curves(run.metrics)
    if "loss" in curves:
        subject.loss = format_value(float(curves["loss"].values[-1]))
    subject.step = max([subject.step, *(int(curve.steps[-1]) for curve in curves.values())])
    validations = without_bins(read_curves(run.validation_metrics))
    subject.metrics = {
        chart_style(name).title: format_value(float(curve.values[-1])) for name, curve in validations.items()
    }


def add_images(run: RunFolder, subject: SubjectOverview, size: EmbeddedSize) -> None:
    """Adds the newest sample images that can be read."""
    paths = run.samples(0).parent.glob("step_*.png")
    for path in sorted(paths, key=lambda path: (len(path.name), path.name), reverse=True):
        image = read_image(path)
        if image:
            subject.image, subject.image_step = embed(image, size), path.stem.removeprefix("step_").lstrip("0") or "0"
            return
        subject.problems.append(f"{path.name} cannot be read.")


def order_metrics(titles: Iterable[str]) -> list[str]:
    """Returns titles of metrics in the order of a report, unknown ones last."""
    present = set(titles)
    known = [style.title for style in CHART_STYLES.values() if style.title in present]
    return known + sorted(present - set(known), key=natural_order)


def relative_url(root: Path, page: Path) -> str | None:
    """Returns the URL of a folder, relative to a page, with a slash at its end; None from one disk to another."""
    if page.parent == root:
        return "./"
    if not is_local(root) or not is_local(page):
        return None
    return quote(os.path.relpath(root, page.parent)) + "/"
