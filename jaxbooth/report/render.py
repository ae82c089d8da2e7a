"""Renders the page: fills its templates with the data of the runs."""

import importlib.metadata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jaxbooth.config.prior import describe_terms
from jaxbooth.report.charts import curve_spec, make_charts, run_colour, vega_script
from jaxbooth.report.run_data import RunData
from jaxbooth.report.samples import collect_samples
from jaxbooth.report.scores import read_scores
from jaxbooth.report.settings import compare_settings, describe_trained, logged_memory, run_statistics
from jaxbooth.report.training_images import class_images, contact_sheets

FILE = "report.html"  # of a report without --out
GENERATOR = '<meta name="generator" content="jaxbooth report">'  # by which a report is recognised


class Head(NamedTuple):
    """What the page says about a run first."""

    name: str
    colour: str
    state: str
    complete: bool
    path: str
    details: dict[str, str]


def render(runs: Sequence[RunData]) -> str:
    """Returns the page."""
    names = [run.name for run in runs]
    charts = make_charts(runs)
    samples = collect_samples(runs)
    evaluations = [read_scores(run, number, len(runs)) for number, run in enumerate(runs)]
    view = {
        "generator": Markup(GENERATOR),
        "version": importlib.metadata.version("jaxbooth"),
        "created": format_time(datetime.now(UTC)),
        "heads": [run_head(run, number) for number, run in enumerate(runs)],
        "settings": compare_settings([run.config for run in runs]),
        "charts": charts,
        "samples": samples,
        "sheets": contact_sheets(runs),
        "class_images": class_images(runs),
        "evaluations": evaluations,
        "statistics": [run_statistics(run) for run in runs],
        "memory_logged": any(logged_memory(run) for run in runs),
        "damaged": [path for run in runs for path in run.damaged],
        "vega_script": Markup(vega_script()),
        "data": {
            "runs": names,
            "specs": {
                "linear": curve_spec(names, "linear", zero=False),
                "zero": curve_spec(names, "linear", zero=True),
                "log": curve_spec(names, "log", zero=False),
            },
            "charts": [chart.data for chart in charts],
            "samples": samples.data if samples else None,
            "intervals": [metric.chart for evaluation in evaluations if evaluation for metric in evaluation.metrics],
        },
    }
    return environment().get_template("page.html").render(view)


def environment() -> Environment:
    """Returns the templates. Every value is escaped."""
    loader = PackageLoader("jaxbooth.report", "page")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def run_head(run: RunData, number: int) -> Head:
    """Returns the head of a run."""
    config, first = run.config, run.config.subjects[0]
    others = f", and {len(config.subjects) - 1} more" if len(config.subjects) > 1 else ""
    details: dict[str, Any] = {
        "base model": config.model + (f" at {config.revision}" if config.revision else ""),
        "trained": describe_trained(config),
        "subject": first.instance_prompt + others,
        "class": (first.class_prompt or "") + others,
        "prior": describe_terms(config.prior_terms),
        "best checkpoint": f"step {run.best}" if run.best is not None else "",
        "last step logged": format_time(run.written),
    }
    complete = run.stopped is not None or run.step >= config.train.steps
    filled = {key: value for key, value in details.items() if value}
    return Head(run.name, run_colour(number), run.state, complete, str(run.folder.root), filled)


def format_time(moment: datetime) -> str:
    """Writes a time in UTC."""
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"
