"""What a run's page reads of files that grow: logs of metrics and lines of progress; and the axes that it draws."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from jaxbooth.report.curves import Curve
from jaxbooth.ui import metric_logs
from jaxbooth.ui.charts import chart_view, chart_views, linear_axis, log_axis, step_ticks
from jaxbooth.ui.metric_logs import MetricLogs
from jaxbooth.ui.phase import last_phase


def append(path: Path, steps: range, text: str = "") -> None:
    """Appends lines of metrics, whose loss is the step, and some text."""
    with path.open("a") as file:
        file.write("".join(json.dumps({"step": step, "loss": float(step)}) + "\n" for step in steps) + text)


@pytest.fixture
def log(tmp_path) -> Path:
    """A log with five steps."""
    append(tmp_path / "metrics.jsonl", range(1, 6))
    return tmp_path / "metrics.jsonl"


def test_only_what_was_appended_is_parsed(log, monkeypatch):
    logs = MetricLogs()
    assert logs.read(log)["loss"].steps.tolist() == [1, 2, 3, 4, 5]
    parsed = []
    monkeypatch.setattr(
        metric_logs.json, "loads", lambda line: parsed.append(line) or json.JSONDecoder().decode(line.decode())
    )
    append(log, range(6, 8), '{"step": 8, "lo')
    assert logs.read(log)["loss"].values.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert [b'"step": 6' in parsed[0], len(parsed)] == [True, 2]
    append(log, range(0), 'ss": 8.0}\n')  # the line that was not complete
    assert logs.read(log)["loss"].steps.tolist()[-1] == 8


def test_a_log_that_a_resumed_run_has_rewritten_is_read_again(log):
    logs = MetricLogs()
    logs.read(log)
    aside = log.with_name("new")
    append(aside, range(1, 4))
    os.replace(aside, log)
    append(log, range(4, 10))  # longer than before
    assert logs.read(log)["loss"].steps.tolist() == list(range(1, 10))


def test_a_log_that_was_changed_in_place_is_read_again(log):
    logs = MetricLogs()
    logs.read(log)
    log.write_text(log.read_text().replace("5.0", "7.0"))
    append(log, range(6, 7))
    assert logs.read(log)["loss"].values.tolist() == [1, 2, 3, 4, 7, 6]


def test_a_log_that_is_gone_has_no_curves(log):
    logs = MetricLogs()
    logs.read(log)
    log.unlink()
    assert logs.read(log) == {}


def test_of_a_step_that_was_done_again_the_last_line_counts(log):
    append(log, range(0), '{"step": 2, "loss": 9}\n')
    curve = MetricLogs().read(log)["loss"]
    assert curve.steps.tolist() == [1, 2, 3, 4, 5]
    assert curve.values.tolist() == [1, 9, 3, 4, 5]


@pytest.mark.parametrize("line", [
    b"\xff", b"[1]", b"{", b'{"loss": 1}', b'{"step": "6", "loss": 1}', b'{"step": -1, "loss": 1}',
    b'{"step": 6, "loss": NaN}', b'{"step": 6, "loss": 1e999}', b'{"step": 6, "loss": "1"}',
    b'{"step": 6, "loss": true}', b'{"step": 99999999999999999999, "loss": 1}', b"[" * 100_000,
])  # fmt: skip
def test_a_line_that_says_nothing_is_passed_over(line, log):
    with log.open("ab") as file:
        file.write(line + b"\n")
    assert MetricLogs().read(log)["loss"].steps.tolist() == [1, 2, 3, 4, 5]


# Axes


def curve(*values: float) -> Curve:
    """Returns a curve over steps from 1."""
    return Curve(np.arange(1, len(values) + 1), np.array(values, np.float64))


@pytest.mark.parametrize(("values", "labels"), [
    ((0.02, 0.34), ["0", "0.1", "0.2", "0.3", "0.4"]),
    ((7.2, 9.9), ["7", "8", "9", "10"]),
    ((1e-6, 5e-6), ["1e-6", "2e-6", "3e-6", "4e-6", "5e-6"]),
    ((3, 3), ["2.6", "2.8", "3.0", "3.2", "3.4"]),
    ((0, 0), ["-0.10", "-0.05", "0", "0.05", "0.10"]),
])  # fmt: skip
def test_an_axis_has_few_round_numbers(values, labels):
    ticks, low, high = linear_axis([curve(*values)], zero=False)
    assert [label for label, _ in ticks] == labels
    assert low - 1e-12 <= min(values) <= max(values) <= high + 1e-12


@pytest.mark.parametrize(("values", "labels"), [
    ((0.001, 10), ["0.001", "0.01", "0.1", "1", "10"]),
    ((0.02, 0.3), ["0.03", "0.1", "0.3"]),
    ((0.05, 0.051), ["0.05", "0.06"]),
])  # fmt: skip
def test_a_logarithmic_axis_too(values, labels):
    shown = [label for label, _ in log_axis([curve(*values)])[0]]
    assert set(labels) <= set(shown)
    assert len(shown) <= 6


def test_steps_are_whole_and_few():
    assert [tick.label for tick in step_ticks(1, 320)] == ["100", "200", "300"]
    assert [tick.label for tick in step_ticks(1, 4)] == ["1", "2", "3", "4"]
    assert [tick.label for tick in step_ticks(0, 100_000)] == ["0", "20,000", "40,000", "60,000", "80,000", "100,000"]
    assert [tick.label for tick in step_ticks(7, 7)] == ["7"]


def test_a_chart_says_what_it_shows_and_reaches_both_ends():
    view = chart_view("eval/drift", curve(0.1, 0.3, 0.2), False, 200)
    assert view.description == "Drift of the class: from 0.1 at step 1 to 0.2 at step 3"
    assert view.line.startswith("M0.0 ")
    assert view.line.split("L")[-1].startswith("1000.0 ")
    assert view.dots.count("M") == 3
    assert view.rows == [(1, "0.1"), (2, "0.3"), (3, "0.2")]


def test_a_hundred_thousand_steps_are_drawn_with_few_points():
    rng = np.random.default_rng(0)
    many = Curve(np.arange(100_000), np.exp(rng.normal(size=100_000)))
    [loss], [] = chart_views({"loss": many}, logarithmic=True)
    assert loss.line.count("L") < 500
    assert loss.noise.count("L") < 1000


# Progress


@pytest.mark.parametrize(("line", "phase"), [
    ("train: 12 of 200 (6%), loss 0.1, 4.0 images/s, 0:00:10 elapsed, 1:01:02 left", ("train", 12, 200, 3662)),
    ("compile: train step, 3.1 s, 0:00:03 elapsed", ("compile", None, None, None)),
    ("held out: 3 of 8 (38%), 0:00:12 elapsed, 0:00:20 left", ("held out", 3, 8, 20)),
    ("working: 0:00:25 elapsed", ("working", None, None, None)),
])  # fmt: skip
def test_the_newest_line_of_progress_tells_the_phase(line, phase):
    assert last_phase(["load: 1 of 2 (50%), 0:00:01 elapsed", line, "some other line"]) == phase


@pytest.mark.parametrize("lines", [[], ["hello"], ["train: 1 of 2 (50%), 0:00:01 elapsed", "--- 2026-01-01 00:00:00"]])
def test_before_its_first_line_there_is_no_phase(lines):
    assert last_phase(lines) is None
