"""metrics.jsonl and validation.jsonl: what a run appends, and that no line a user may want is ever lost."""

import json

import numpy as np
import pytest

from jaxbooth.errors import UserError
from jaxbooth.report.curves import read_curves
from jaxbooth.runs.metric_writer import VALIDATION, MetricWriter, read_metrics

GOOD = [{"step": step, "loss": step / 8} for step in range(1, 7)]
BAD = [
    b"not JSON",
    b"[1]",
    b'"text"',
    b'{"loss": 1.0}',
    b'{"step": "4"}',
    b'{"step": 2.0}',
    b'{"step": -1}',
    b'{"step": true}',
    b'{"step": 99999999999999999999}',
    b'{"step": 3, "loss": "\xff\xfe"}',
    b"[" * 100_000,
    b'{"step": ' + b"9" * 5000 + b"}",
]


def write_log(path, lines):
    """Writes a log of raw lines."""
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def good_lines():
    return [json.dumps(entry).encode() for entry in GOOD]


def resume(folder, step):
    """Opens and closes a run's logs, as a run does that resumes at `step`."""
    MetricWriter(folder / "metrics.jsonl", folder / "tensorboard", step).close()


@pytest.mark.parametrize(("step", "kept"), [(0, []), (4, [0, 4]), (9, [0, 4, 8])])
def test_the_validation_of_step_0_is_done_again_and_no_later_one(tmp_path, step, kept):
    write_log(tmp_path / VALIDATION, [b'{"step": %d}' % number for number in (0, 4, 8)])
    writer = MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", step)
    assert [number for number in (0, 4, 8) if writer.has_validation(number)] == kept
    writer.close()
    assert [line["step"] for line in read_metrics(tmp_path / VALIDATION)] == kept


def test_a_line_can_get_more_values_until_the_next_step(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 0)
    writer.log_step(1, {"loss": 0.5})
    writer.log_step(2, {"loss": 0.25})
    writer.extend_step(1, {"validation/subject_loss": 7.0})  # whose line is on its way to the disk
    writer.extend_step(2, {"validation/subject_loss": 0.125})
    writer.flush()
    writer.extend_step(2, {"validation/subject_loss": 7.0})
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 1, "loss": 0.5}',
        '{"step": 2, "loss": 0.25, "validation/subject_loss": 0.125}',
    ]


@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize("log", ["metrics.jsonl", VALIDATION])
def test_lines_that_cannot_be_read_are_kept_aside_and_all_others_stay(tmp_path, capsys, log, place):
    lines = good_lines()
    write_log(tmp_path / log, lines[:place] + BAD + lines[place:])
    resume(tmp_path, 6)
    assert (tmp_path / log).read_bytes().splitlines() == lines
    assert (tmp_path / f"{log}.unreadable").read_bytes().splitlines() == BAD
    printed = capsys.readouterr().out
    assert printed.count("warning:") == 1
    assert f"{len(BAD)} lines of {tmp_path / log} cannot be read; kept in {log}.unreadable." in " ".join(
        printed.split()
    )


def test_what_is_aside_already_is_never_overwritten(tmp_path):
    for line in BAD[:2]:
        write_log(tmp_path / "metrics.jsonl", [line])
        resume(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl.unreadable").read_bytes().splitlines() == BAD[:2]


def test_lines_of_steps_that_are_done_again_make_room_and_are_kept(tmp_path):
    lines = good_lines()
    write_log(tmp_path / "metrics.jsonl", lines)
    resume(tmp_path, 4)
    resume(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes().splitlines() == lines[:2]
    assert (tmp_path / "metrics.jsonl.superseded").read_bytes().splitlines() == lines[4:] + lines[2:4]


def test_the_bytes_of_a_line_stay_as_they_are(tmp_path):
    lines = [b'\xef\xbb\xbf{"step": 1, "note": "a\xe2\x80\xa8b", "loss": 1.50}\r', b'{"step":2}']
    write_log(tmp_path / "metrics.jsonl", lines)
    resume(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes().split(b"\n") == [*lines, b""]
    assert not (tmp_path / "metrics.jsonl.unreadable").exists()


def test_a_line_that_a_killed_process_cut_short_does_not_join_the_next_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(good_lines()[0] + b'\n{"step": 2, "lo')
    writer = MetricWriter(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", 1)
    writer.log_step(2, {"loss": 0.25})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == GOOD[:2]
    assert (tmp_path / "metrics.jsonl.unreadable").read_bytes() == b'{"step": 2, "lo\n'


def test_curves_take_the_lines_that_can_be_read(tmp_path):
    lines = good_lines()
    write_log(
        tmp_path / "metrics.jsonl",
        [*lines[:2], *BAD, b'{"step": 3, "loss": NaN, "big": 1' + b"0" * 400 + b"}", *lines[3:]],
    )
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert set(curves) == {"loss"}
    np.testing.assert_array_equal(curves["loss"].steps, [1, 2, 4, 5, 6])


def test_a_folder_in_the_place_of_a_log_is_one_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics\.jsonl is not a file"):
        resume(tmp_path, 0)
