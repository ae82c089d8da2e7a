"""What a person sees without a terminal, with --quiet, and in a log file."""

import os
import re
import threading

import pytest

from jaxbooth.cli.main import main
from jaxbooth.console import progress as progress_module
from jaxbooth.console.messages import info, print_result, show_table, warn
from jaxbooth.console.output import console, output
from jaxbooth.console.progress import progress
from jaxbooth.errors import UserError
from jaxbooth.evaluation.results import print_table
from jaxbooth.metrics.definitions import DEFINITIONS

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d "


@pytest.fixture(autouse=True)
def fresh_output():
    """Every test sets the output itself."""
    yield
    output.configure(False, None)


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def columns(monkeypatch):
    """Sets the width that tables are printed at."""
    return lambda width: monkeypatch.setattr(console, "width", width)


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_phase_of_many_steps_writes_a_line_for_each_twentieth(capsys, clock):
    with progress("train", 1000) as bar:
        for step in range(1000):
            clock[0] += 0.1
            bar.set_postfix(f"loss {step / 1000:.4f}")
            bar.advance()
    lines = lines_of(capsys)
    assert len(lines) == 20
    assert lines[0] == "train: 50 of 1000 (5%), loss 0.0490, 0:00:05 elapsed, 0:01:35 left"
    assert lines[-1] == "train: 1000 of 1000 (100%), loss 0.9990, 0:01:40 elapsed"


def test_a_short_phase_writes_its_end_alone(capsys, clock):
    with progress("prior", 200) as bar:
        for _ in range(200):
            clock[0] += 0.001
            bar.advance()
    assert lines_of(capsys) == ["prior: 200 of 200 (100%), 0:00:00 elapsed"]


def test_what_a_resumed_phase_had_done_before_does_not_make_it_faster(capsys, clock):
    with progress("train", 100, done=90) as bar:
        clock[0] += 10
        bar.advance(5)
    assert lines_of(capsys)[0] == "train: 95 of 100 (95%), 0:00:10 elapsed, 0:00:10 left"


def test_a_phase_whose_main_thread_waits_breaks_its_silence(capsys, monkeypatch):
    monkeypatch.setattr(progress_module, "SILENCE_SECONDS", 0.0)
    with progress("compile", None) as bar:
        bar.set_postfix("train step")
        threading.Event().wait(2.5)
    assert [line.partition(",")[0] for line in lines_of(capsys)] == ["compile: train step"] * 3


def test_the_silence_that_is_kept_is_shorter_than_half_a_minute():
    assert progress_module.SILENCE_SECONDS < 29


def test_the_inner_of_two_phases_speaks(capsys, clock):
    with progress("train", 100) as outer, progress("sample", 8, transient=True) as inner:
        clock[0] += 26
        outer.print_if_silent()
        inner.print_if_silent()
        inner.print_if_silent()
    assert [line.split(":")[0] for line in lines_of(capsys)] == ["sample", "train"]


def test_quiet_leaves_warnings_and_results(capsys, clock):
    output.configure(True, None)
    info("a detail")
    warn("a danger")
    with progress("train", 10) as bar:
        clock[0] += 60
        bar.advance(10)
    print_result("done: grid.png")
    assert lines_of(capsys) == ["warning: a danger", "done: grid.png"]


def test_a_log_file_takes_every_line_with_its_time_and_keeps_what_was_there(tmp_path, capsys):
    path = tmp_path / "logs" / "train.log"
    for quiet in (False, True):
        output.configure(quiet, path)
        info("a detail [with brackets]")
        warn("a danger")
        with progress("train", 2) as bar:
            bar.advance(2)
        print_result("done")
        show_table("a\ntable")
    lines = path.read_text().splitlines()
    texts = [re.sub(f"^{STAMP}", "", line) for line in lines]
    assert all(re.match(STAMP, line) for line in lines)
    expected = [
        "a detail [with brackets]",
        "warning: a danger",
        "train: 2 of 2 (100%), 0:00:00 elapsed",
        "done",
        "a",
        "table",
    ]
    assert texts == expected * 2


def test_a_log_file_that_cannot_be_written_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--log-file", str(tmp_path), "doctor"])
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err == f"error: --log-file {tmp_path} cannot be written (Is a directory); choose another.\n"
    )


def test_a_pipe_that_nobody_reads_is_no_log_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe cannot be written"):
        output.configure(False, tmp_path / "pipe")


@pytest.mark.parametrize("argv", [["plan", "--log-file"], ["plan", "--log-file", "--json"], ["plan", "--log-file="]])
def test_a_log_file_without_a_name_is_refused(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert "--log-file needs the name of a file" in capsys.readouterr().err


def test_errors_are_logged_and_shown_though_quiet(tmp_path, capsys):
    path = tmp_path / "a.log"
    with pytest.raises(SystemExit):
        main(["sample", "--quiet", str(tmp_path / "no run"), f"--log-file={path}", "--prompt", "a cat"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.fullmatch(STAMP + re.escape(line), path.read_text().removesuffix("\n"))


def evaluation(models):
    """Results of an evaluation, as its table takes them."""
    estimate = {"mean": 0.5, "low": 0.41, "high": 0.59}
    metrics = dict.fromkeys(DEFINITIONS, estimate)
    definitions = {
        name: {"title": f"{name} of the subject, a longer title", "better": "higher"} for name in DEFINITIONS
    }
    return {"models": [{"label": label, "metrics": metrics} for label in models], "definitions": definitions}


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize(
    "models", [["base"], ["base model", "runs/a-dog-with-a-long-name, step 1000", "runs/b, step 800"]]
)
def test_every_metric_and_number_of_an_evaluation_is_readable_at_any_width(capsys, columns, width, models):
    columns(width)
    print_table(evaluation(models))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    for name in DEFINITIONS:
        assert f"{name} of the subject, a longer title ↑" in printed
    assert printed.count("0.500 [0.410, 0.590]") == len(models) * len(DEFINITIONS)
    assert "…" not in printed


@pytest.mark.parametrize("width", [60, 80])
def test_a_plan_is_readable_at_any_width(capsys, columns, width):
    columns(width)
    main(["plan", "demo", "--topology", "h100:8", "--train.batch-size", "8"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    assert "…" not in printed
    words = " ".join(printed.split())
    for name in ("plan", "fits", "memory", "FLOPs per step", "largest batch", "expected", "the run"):
        assert re.search(rf"^{name} ", printed, re.MULTILINE)
    assert "class images, compiling and sample images come on top" in words
