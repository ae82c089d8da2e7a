"""The command line: parse, call one library function, print."""

import gc
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path

from jaxbooth.cli.arguments import ExportArguments, SampleArguments
from jaxbooth.cli.completion import completion_command
from jaxbooth.cli.evaluate import evaluate_command
from jaxbooth.cli.parse import parse, starting_config
from jaxbooth.cli.plan import plan_command
from jaxbooth.cli.report import report_command
from jaxbooth.config.run_config import Config
from jaxbooth.config.suggestions import MAX_SHOWN
from jaxbooth.console.messages import pluralize, print_result, print_stderr
from jaxbooth.console.output import output
from jaxbooth.console.streams import protect_streams
from jaxbooth.distributed.signals import exit_before_start, handled, stop_signals
from jaxbooth.errors import RunFailure, UserError, format_message
from jaxbooth.storage.disk import is_full
from jaxbooth.storage.paths import ascii_repr, is_utf8, local_path
from jaxbooth.weights.resolve import Source

USAGE = """usage: jaxbooth COMMAND ...

  train [CONFIG] [--flags]   teach a model one subject; the same command again continues the run
  sample RUN|MODEL           draw images with a trained run, or with a plain model
  export RUN                 write a trained run for diffusers, A1111, ComfyUI or the Hub
  evaluate RUN               measure what a run learned and what it forgot
  report RUN [RUN ...]       write runs as one HTML page: curves, sample images, settings, scores
  plan [CONFIG] [--flags]    say whether a run fits a device, how long it takes and what would help
  doctor                     show versions, devices and caches
  completion bash|zsh        print a script that completes commands and flags in a shell
  help [COMMAND]             show this, or the flags of a command

jaxbooth COMMAND --help explains each; CONFIG is a YAML file or a shipped one: demo, sd15,
sd15-lora, sd21, sdxl-lora.
Anywhere on the line: --quiet shows warnings, errors and the result only; --log-file FILE appends
all lines to FILE, with the time; --debug shows tracebacks. --version shows versions."""
LOG_FILE = "--log-file"


def train_command(argv: list[str]) -> None:
    """Parses a configuration with its flags and trains."""
    default = starting_config(argv)
    config = parse(Config, argv, "jaxbooth train [CONFIG]", default)
    with handled(exit_before_start, *stop_signals()):  # the run has handlers of its own, which save first
        from jaxbooth.runs.train import train

        train(config)


def sample_command(argv: list[str]) -> None:
    """Draws images and saves each with what made it."""
    arguments = parse(SampleArguments, argv, "jaxbooth sample")
    from jaxbooth.cli.commands import sample

    given = arguments.model_dump()
    origin = Source(given.pop("source"), *(given.pop(field.name) for field in fields(Source)[1:]))
    drawn = sample(origin, **given)
    names = " to ".join(dict.fromkeys(path.name for path in (drawn.images[0], drawn.images[-1])))
    print_result(f"drew {pluralize(len(drawn.images), 'image')} into {arguments.out} ({names}; {drawn.description})")
    print_result(f"contact sheet: {drawn.contact_sheet}")


def export_command(argv: list[str]) -> None:
    """Writes a run for other tools, and says what was done."""
    arguments = parse(ExportArguments, argv, "jaxbooth export")
    for flag, given in (("--public", arguments.public), ("--license", arguments.license)):
        if given and not arguments.push:
            raise UserError(f"{flag} is about the repository of --push OWNER/NAME; add it.")
    from jaxbooth.cli.commands import export

    for sentence in export(
        arguments.run,
        arguments.out,
        arguments.format,
        arguments.dtype,
        arguments.push,
        arguments.public,
        arguments.license,
        arguments.verify,
        arguments.step,
    ):
        print_result(sentence)


def doctor_command(argv: list[str]) -> None:
    """Prints what `summary` found."""
    if argv in (["-h"], ["--help"]):
        print("usage: jaxbooth doctor\n\nShow versions, the devices that JAX really uses, free disk, and caches.")
        return
    if argv:
        raise UserError(f"jaxbooth doctor takes no arguments, found {argv[0]}.")
    from jaxbooth.cli.doctor import summary

    for name, value in summary():
        print_result(f"{name:<18} {value}")


def help_command(argv: list[str]) -> None:
    """Prints the help of a command, or of all."""
    if not argv:
        print(USAGE)
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]](["--help"])
    else:
        raise unknown_command(argv[0])


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train_command,
    "sample": sample_command,
    "export": export_command,
    "evaluate": evaluate_command,
    "report": report_command,
    "plan": plan_command,
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
    """Runs a command. Exit code 2: the input must change. 1: the work failed."""
    # JAX takes three quarters of a GPU by default, and full fine-tuning needs more of a 24 GB card.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    gc.set_threshold(200_000, 20, 100)  # tracing makes objects by the million, and went through them again and again
    argv = list(sys.argv[1:] if argv is None else argv)
    protect_streams()  # and a prompt may hold what the encoding of the terminal lacks
    debug, argv = take_flag(argv, "--debug")
    quiet, argv = take_flag(argv, "--quiet")
    if not debug:
        sys.unraisablehook = lambda _: None  # what Orbax leaves unfinished after a failed write has no reader
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
    """Returns the sentence and the exit code of a failure that a user can do something about; others are raised."""
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
            "--train.gradient-accumulation-steps, --mesh.fsdp, or a smaller --prior.batch-size.",
            1,
        )
    raise error
