"""The command line: finds the command, takes the flags that all commands share, and turns errors into messages."""

import gc
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from jaxbooth.backend import GPU_MEMORY_FRACTION
from jaxbooth.cli.completion import completion_command
from jaxbooth.cli.doctor import doctor_command
from jaxbooth.cli.evaluate import evaluate_command
from jaxbooth.cli.export import export_command
from jaxbooth.cli.lora import lora_command
from jaxbooth.cli.plan import plan_command
from jaxbooth.cli.report import report_command
from jaxbooth.cli.sample import sample_command
from jaxbooth.cli.train import train_command
from jaxbooth.cli.train_many import train_many_command
from jaxbooth.cli.ui import ui_command
from jaxbooth.config.suggestions import MAX_SHOWN
from jaxbooth.console.messages import print_stderr
from jaxbooth.console.output import output
from jaxbooth.console.streams import protect_streams
from jaxbooth.errors import RunFailure, UserError, format_message
from jaxbooth.storage.disk import is_full
from jaxbooth.storage.paths import ascii_repr, is_utf8, local_path

USAGE = """usage: jaxbooth COMMAND ...

  train [CONFIG] [--flags]   teach a model a subject; run the same command again to continue
  train-many MANIFEST [CONFIG] [--flags]
                             teach each of many subjects a LoRA, in one program
  sample RUN|MODEL           generate images with a trained run or with any model
  export RUN                 save a trained run for diffusers, A1111, ComfyUI or the Hub
  evaluate RUN               measure what a run has learned and what it has forgotten
  report RUN [RUN ...]       show runs on one HTML page: curves, sample images, settings, scores
  plan [CONFIG] [--flags]    tell if a run fits into memory, how long it takes, and what would help
  ui [--root runs/]          serve a page to do all of this in a browser, also through ssh
  lora merge|resize|extract  work on LoRA files without training
  doctor                     show versions, devices and caches
  completion bash|zsh        print a script that completes commands and flags in a shell
  help [COMMAND]             show this text, or the flags of a command

CONFIG is a YAML file or one of the shipped configurations: demo, sd15, sd15-lora, sd21, sdxl-lora.
jaxbooth COMMAND --help lists the flags of a command. Every command also takes these:

  --quiet                    show only warnings, errors and results
  --log-file FILE            append all lines, with the time, to FILE
  --debug                    show tracebacks

jaxbooth --version shows versions."""
LOG_FILE = "--log-file"


def help_command(argv: list[str]) -> None:
    """Prints the help of a command, or this program's."""
    if not argv:
        print(USAGE)
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]](["--help"])
    else:
        raise unknown_command(argv[0])


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train_command,
    "train-many": train_many_command,
    "sample": sample_command,
    "export": export_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "plan": plan_command,
    "ui": ui_command,
    "lora": lora_command,
    "doctor": doctor_command,
    "completion": completion_command,
    "help": help_command,
}


def unknown_command(typed: str) -> UserError:
    """Returns the error about a command that does not exist."""
    known = [name for name in COMMANDS if name != "help"]
    near = get_close_matches(typed, known, n=1)
    meant = f"; did you mean {near[0]}? All" if near else "; the"
    return UserError(f"unknown command {typed[:MAX_SHOWN]!r}{meant} commands are {', '.join(known)}.")


def versions() -> str:
    """Returns the versions of jaxbooth and of what decides its numbers."""
    parts = [f"{package} {importlib.metadata.version(package)}" for package in ("jaxbooth", "jax", "flax")]
    return f"{parts[0]} ({', '.join(parts[1:])}, python {platform.python_version()})"


def main(argv: list[str] | None = None) -> None:
    """Runs a command. It exits with 2 if the input must change, and with 1 if the work failed."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_FRACTION))
    gc.set_threshold(200_000, 20, 100)  # tracing creates millions of objects, which need not be searched that often
    argv = list(sys.argv[1:] if argv is None else argv)
    protect_streams()  # a prompt may hold characters that the terminal cannot encode
    debug, argv = take_flag(argv, "--debug")
    quiet, argv = take_flag(argv, "--quiet")
    if not debug:
        sys.unraisablehook = lambda _: None  # Orbax leaves coroutines behind when a write fails
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    if argv[0] in ("-V", "--version"):
        print(versions())
        return
    try:
        check_encoding(argv)
        log_file, argv = take_log_file(argv)
        output.configure(quiet, log_file)
        if argv[0] not in COMMANDS:
            raise unknown_command(argv[0])
        COMMANDS[argv[0]](argv[1:])
    except (UserError, RunFailure, OSError, RuntimeError, KeyboardInterrupt) as error:
        if debug:
            raise
        message, code = describe_failure(error)
        print_stderr(f"error: {format_message(message)}")
        sys.exit(code)


def check_encoding(argv: list[str]) -> None:
    """Raises UserError for an argument that is not UTF-8: what is named with it could not be written down."""
    for argument in argv:
        if not is_utf8(argument):
            raise UserError(
                f"the argument {ascii_repr(argument)} is not UTF-8; set the terminal to UTF-8, or rename what it names."
            )


def take_flag(argv: list[str], flag: str) -> tuple[bool, list[str]]:
    """Returns whether a flag is among the arguments, and the others."""
    return flag in argv, [argument for argument in argv if argument != flag]


def take_log_file(argv: list[str]) -> tuple[Path | None, list[str]]:
    """Returns the value of --log-file, and the other arguments.

    Raises:
        UserError: it has none, or nothing else is there.
    """
    path, others, rest = None, [], iter(argv)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag != LOG_FILE:
            others.append(argument)
            continue
        path = value if equals else next(rest, "")
        if not path or path.startswith("--"):
            raise UserError(f"{LOG_FILE} needs the name of a file, as in: {LOG_FILE} train.log.")
    if not others:
        raise UserError(f"no command; use one of {', '.join(COMMANDS)}.")
    return local_path(path) if path else None, others


def describe_failure(error: BaseException) -> tuple[str, int]:
    """Returns the message and the exit code of an error that a user can do something about; others are raised."""
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, RunFailure):
        return str(error), 1
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to continue.", 130
    if is_full(error):
        where = getattr(error, "filename", None) or "writing"
        return f"the disk is full ({where}); free some space and run the same command again.", 1
    if isinstance(error, OSError) and error.filename and error.strerror:
        names = " or ".join(str(name) for name in (error.filename, error.filename2) if name)
        return f"{names} cannot be used ({error.strerror}); check that path, what is there, and its permissions.", 2
    if "RESOURCE_EXHAUSTED" in str(error):
        return (
            "the device is out of memory (its own, not the host's); try --train.remat, a smaller --train.batch-size, "
            "--train.gradient-accumulation-steps, --mesh.fsdp, or a smaller --prior.rows.",
            1,
        )
    raise error
