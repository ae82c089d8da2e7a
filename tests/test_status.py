"""How far many subjects are: the file of their changes, the sentence at the end, and what a person sees meanwhile."""

import io
import json

import pytest
from rich.console import Console
from rich.table import Table

from jaxbooth.console import progress as progress_module
from jaxbooth.console.output import console, output
from jaxbooth.console.progress import progress
from jaxbooth.errors import UserError
from jaxbooth.runs.program_folder import ProgramFolder, is_program_folder, read_subject_names
from jaxbooth.runs.status import StateCounts, StatusLog, SubjectStatus, count_states, outcome_of, read_status
from jaxbooth.runs.status_table import RunningSubject, status_display, status_table

MUGS = [RunningSubject(f"mug-{slot}", slot, 10 * slot, 100, 0.125, 72.0) for slot in range(3)]


@pytest.fixture
def path(tmp_path):
    """A status file that is not there yet."""
    return tmp_path / "run" / "status.jsonl"


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    yield now
    output.configure(False, None)


def failed(name, error=None):
    return SubjectStatus(0.0, name, "failed", error=error)


def shown(table: Table, width=100) -> list[str]:
    """The lines of a table on a terminal."""
    terminal = Console(width=width, file=io.StringIO())
    terminal.print(table)
    return [line.rstrip() for line in terminal.file.getvalue().splitlines()]


# The file


def test_a_change_is_one_line_without_what_means_nothing_yet(path):
    log = StatusLog(path, clock=lambda: 1750000000.5)
    log.add("mug", "queued")
    log.add("mug", "running", step=0, steps=100, slot=3)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"time": 1750000000.5, "name": "mug", "state": "queued"},
        {"time": 1750000000.5, "name": "mug", "state": "running", "step": 0, "steps": 100, "slot": 3},
    ]
    log.close()


def test_the_last_line_about_a_subject_counts(path):
    log = StatusLog(path, clock=lambda: 8.0)
    log.add("mug", "running", step=40, steps=100, slot=3)
    log.add("cup", "queued")
    log.add("mug", "failed", step=41, error="the loss of step 41 is not finite.")
    assert read_status(path) == {
        "mug": SubjectStatus(8.0, "mug", "failed", step=41, error="the loss of step 41 is not finite."),
        "cup": SubjectStatus(8.0, "cup", "queued"),
    }


def test_a_log_that_is_opened_again_goes_on_where_it_was(path):
    for state in ("running", "done"):
        log = StatusLog(path)
        log.add("mug", state)
        log.close()
    assert [json.loads(line)["state"] for line in path.read_text().splitlines()] == ["running", "done"]


def test_a_line_that_was_cut_short_does_not_spoil_the_next_one(path):
    path.parent.mkdir()
    path.write_text('{"time": 1, "name": "cup", "state": "done"}\n{"time": 2, "name": "mug", "sta')
    log = StatusLog(path)
    log.add("mug", "running")
    assert {name: status.state for name, status in read_status(path).items()} == {"cup": "done", "mug": "running"}


@pytest.mark.parametrize(
    "line",
    [
        b"not JSON",
        b'["mug"]',
        b'{"name": "mug", "state": "failed"}',
        b'{"time": 1, "state": "failed"}',
        b'{"time": 1, "name": 7, "state": "failed"}',
        b'{"time": 1, "name": "mug", "state": "lost"}',
        b'{"time": NaN, "name": "mug", "state": "failed"}',
        b'{"time": 1, "name": "mug", "state": "failed", "step": "4"}',
        b'{"time": 1, "name": "mug", "state": "failed", "step": -1}',
        b'{"time": 1, "name": "m\xff", "state": "failed"}',
    ],
)
def test_a_line_that_cannot_be_read_is_left_out(path, line):
    path.parent.mkdir()
    path.write_bytes(b'{"time": 1, "name": "mug", "state": "done"}\n' + line + b"\n")
    assert read_status(path) == {"mug": SubjectStatus(1, "mug", "done")}


def test_a_key_of_a_later_version_is_no_reason_to_leave_a_line_out(path):
    path.parent.mkdir()
    path.write_text('{"time": 1, "name": "mug", "state": "done", "host": 4}\n')
    assert read_status(path)["mug"].state == "done"


def test_without_a_file_no_subject_has_a_status(path):
    assert read_status(path) == {}


def test_a_folder_in_its_place_is_named(path):
    path.mkdir(parents=True)
    with pytest.raises(UserError, match="is not a file"):
        read_status(path)


# The sentence


def test_a_subject_without_a_status_is_queued():
    assert count_states({"mug": failed("mug")}, ["mug", "cup"]) == StateCounts(queued=1, failed=1)


def test_the_sentence_names_what_failed_and_why():
    names = [f"mug-{number}" for number in range(4)]
    statuses = {name: SubjectStatus(0.0, name, "done") for name in names}
    assert outcome_of(statuses, names).sentence == "4 of 4 done."
    statuses |= {"mug-1": failed("mug-1", "/photos holds no images."), "mug-3": failed("mug-3")}
    assert outcome_of(statuses, names).sentence == "2 of 4 done, 2 failed: mug-1 (/photos holds no images), mug-3."


def test_the_sentence_says_what_is_not_finished():
    statuses = {"mug": SubjectStatus(0.0, "mug", "running")}
    assert outcome_of(statuses, ["mug", "cup"]).sentence == "0 of 2 done, 2 not finished."


def test_the_sentence_names_five_at_most():
    names = list("abcdefgh")
    assert (
        outcome_of({name: failed(name) for name in names}, names).sentence
        == "0 of 8 done, 8 failed: a, b, c, d, e, and 3 more."
    )


def test_a_long_error_is_shortened_to_one_line():
    text = outcome_of({"mug": failed("mug", "two\nlines, " + "x" * 999)}, ["mug"]).sentence
    assert text.startswith("0 of 1 done, 1 failed: mug (two lines, xxx")
    assert text.endswith("x ...).")
    assert len(text) < 220


# The table


def test_the_table_counts_all_subjects_and_shows_those_that_run():
    counts = StateCounts(queued=4, running=3, done=13, failed=1)
    assert shown(status_table(list(reversed(MUGS)), counts, 53.25)) == [
        "4 queued, 3 running, 13 done, 1 failed, 53.2 subjects/h",
        " subject       slot          step      loss       left",
        " mug-0            0      0 of 100    0.1250    0:01:12",
        " mug-1            1     10 of 100    0.1250    0:01:12",
        " mug-2            2     20 of 100    0.1250    0:01:12",
    ]


def test_what_is_not_known_yet_is_a_dash():
    line = shown(status_table([RunningSubject("mug", 0, 0, 100)], StateCounts(preparing=2, running=1), None))
    assert line[0] == "0 queued, 2 preparing, 1 running, 0 done, 0 failed"
    assert line[-1].split() == ["mug", "0", "0", "of", "100", "–", "–"]


def test_more_than_twenty_subjects_are_one_line():
    many = [RunningSubject(f"mug-{slot}", slot, 0, 100) for slot in range(64)]
    lines = shown(status_table(many, StateCounts(running=64), None))
    assert len(lines) == 2 + 20 + 1
    assert lines[-1] == "and 44 more"


def test_a_narrow_terminal_shortens_names_and_not_numbers():
    long = RunningSubject("a-mug-with-a-long-name [blue]", 63, 1234, 2000, 0.125, 7200.0)
    assert shown(status_table([long], StateCounts(running=1), None), width=50)[-1].endswith(
        "63  1234 of 2000  0.1250  2:00:00"
    )


# The display


def test_without_a_terminal_there_is_a_line_for_each_twentieth_of_all_steps(capsys, clock):
    with status_display([], StateCounts(queued=4), 100) as display:
        clock[0] += 36
        display.update([RunningSubject("mug", 0, 50, 100)], StateCounts(queued=3, running=1))
        clock[0] += 1
        display.update([RunningSubject("mug", 0, 60, 100)], StateCounts(queued=3, running=1))
        clock[0] += 35
        display.update([], StateCounts(queued=3, done=1))
    lines = capsys.readouterr().out.splitlines()
    half = "50 of 400 (12%), 3 queued, 1 running, 0 done, 0 failed, 50 subjects/h, 0:00:36 elapsed, 0:04:12 left"
    assert lines[0] == f"train 4 subjects: {half}"
    whole = "100 of 400 (25%), 3 queued, 0 running, 1 done, 0 failed, 50 subjects/h, 0:01:12 elapsed, 0:03:36 left"
    assert lines[1:] == [f"train 4 subjects: {whole}"] * 2  # the last one is the end of the block


def test_what_an_earlier_process_did_makes_this_one_no_faster(clock):
    with status_display(MUGS, StateCounts(running=3, done=90), 100) as display:
        clock[0] += 3600
        display.update([], StateCounts(done=93))
        assert display.table().title == "0 queued, 0 running, 93 done, 0 failed, 2.7 subjects/h"


def test_subjects_that_fail_are_work_that_is_over_but_none_that_was_done(clock):
    with status_display([], StateCounts(queued=10), 100) as display:
        clock[0] += 3600
        display.update([], StateCounts(queued=4, done=2, failed=4))
        assert display.table().title == "4 queued, 0 running, 2 done, 4 failed, 2 subjects/h"


def test_a_phase_inside_of_it_speaks_in_its_place(capsys, clock):
    with status_display(MUGS, StateCounts(running=3), 100), progress("save", None) as inner:
        clock[0] += 26
        progress_module.running[0].print_if_silent()
        inner.print_if_silent()
        assert capsys.readouterr().out == "save: 0:00:26 elapsed\n"


def test_quiet_shows_nothing(capsys, clock):
    output.configure(True, None)
    with status_display(MUGS, StateCounts(running=3), 100) as display:
        clock[0] += 60
        display.update([], StateCounts(done=3))
    assert capsys.readouterr().out == ""


def test_on_a_terminal_the_table_stays_when_the_block_ends(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(console, "_file", terminal)  # the property would be restored to one test's output
    monkeypatch.setattr(console, "_force_terminal", True)
    with status_display(MUGS, StateCounts(running=3), 100) as display:
        display.update(MUGS[1:2], StateCounts(running=1, done=2))
    assert "mug-1" in terminal.getvalue().rpartition("1 running, 2 done")[2]
    assert "elapsed" not in terminal.getvalue()


# The folder


def test_a_folder_with_a_program_and_a_manifest_is_a_programs_unless_it_is_a_runs(tmp_path):
    folder = ProgramFolder(tmp_path)
    folder.program.touch()
    assert not is_program_folder(tmp_path)
    folder.manifest.touch()
    assert is_program_folder(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert not is_program_folder(tmp_path)


def test_names_come_in_the_manifests_order_without_those_that_leave_the_folder(tmp_path):
    path = tmp_path / "manifest.jsonl"
    names = ["mug", "a cup", "../mug", "mug", "/etc", 7, None, "b/c"]
    path.write_text("".join(json.dumps({"name": name, "images": 4}) + "\n" for name in names) + '\n{"name": "ha')
    assert read_subject_names(path) == (["mug", "a cup"], 7)
