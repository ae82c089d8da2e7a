"""Output that nobody reads any more stops no work."""

import os
import subprocess
import sys

import pytest

from tests.commands import environment

WORK = """
import os, sys
from jaxbooth.console.streams import protect_streams
from jaxbooth.console.messages import print_result
from jaxbooth.console.output import console, output
from jaxbooth.console.progress import progress
protect_streams()
print("first", flush=True)
sys.stdin.readline()  # the reader is gone now
for number in range(1000):
    print("a line", number, flush=True)
    console.print("[bold]another[/] line", number)
    print("an error", number, file=sys.stderr, flush=True)
with progress("train", 10) as bar:
    bar.advance(10)
os.write(1, b"a library's line")
print_result("done")
open(sys.argv[1], "w").write("the work is done")
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize("code", [0, 1, 2])
def test_work_goes_on_when_the_reader_of_both_streams_is_gone_and_the_exit_code_is_right(tmp_path, code):
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(tmp_path / "result"), str(code)],
        stdin=subprocess.PIPE, stdout=writer, stderr=writer, env=environment(), text=True,
    )  # fmt: skip
    os.close(writer)
    with os.fdopen(reader) as lines:
        assert lines.readline() == "first\n"
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(60) == code
    assert (tmp_path / "result").read_text() == "the work is done"


@pytest.mark.parametrize("redirection", ["| head -1 >/dev/null", ">/dev/full", ">&-"])
def test_a_command_whose_output_cannot_be_written_ends_well(tmp_path, redirection):
    script = f'"{sys.executable}" -m jaxbooth help {redirection}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_characters_that_the_terminal_cannot_encode_are_escaped():
    code = "from jaxbooth.console.streams import protect_streams; protect_streams(); print('caf\\u00e9 \\U0001f431')"
    variables = environment() | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "caf\\xe9 \\U0001f431\n")
