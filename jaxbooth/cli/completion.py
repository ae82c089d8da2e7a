"""`jaxbooth completion`: a script that completes commands and flags in a shell, made by tyro."""

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any

import tyro

from jaxbooth.cli.evaluate import EvaluateArguments
from jaxbooth.cli.export import ExportArguments
from jaxbooth.cli.lora import lora_arguments
from jaxbooth.cli.plan import PlanArguments
from jaxbooth.cli.report import ReportArguments
from jaxbooth.cli.sample import SampleArguments
from jaxbooth.cli.train_many import ManyArguments
from jaxbooth.cli.ui import UiArguments
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import Section
from jaxbooth.errors import UserError

SHELLS = ("bash", "zsh")
COMPLETION_USAGE = """usage: jaxbooth completion bash|zsh

Print a script that completes commands and flags. For bash, put this into ~/.bashrc:
  eval "$(jaxbooth completion bash)"
For zsh, write it into a folder of $fpath under the name _jaxbooth:
  jaxbooth completion zsh > ~/.zfunc/_jaxbooth"""


def completion_command(argv: list[str]) -> None:
    """Prints a script that completes commands and flags in a shell."""
    if argv in (["-h"], ["--help"]):
        print(COMPLETION_USAGE)
        return
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise UserError(f"jaxbooth completion takes a shell, {' or '.join(SHELLS)}; found {' '.join(argv) or 'none'}.")
    commands: dict[str, Callable[..., Any]] = {
        "train": Config,
        "train-many": ManyArguments,
        "sample": SampleArguments,
        "export": ExportArguments,
        "evaluate": EvaluateArguments,
        "report": ReportArguments,
        "plan": PlanArguments,
        "ui": UiArguments,
        "lora": lora_arguments,
        "doctor": Section,
    }
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):  # tyro leaves after printing
        tyro.extras.subcommand_cli_from_dict(commands, prog="jaxbooth", args=["--tyro-print-completion", argv[0]])
    # Of a description with several lines, bash would take each but the first for a word to complete.
    print(re.sub(r"^COMPLETION_SPEC = .*$", lambda spec: spec[0].replace(r"\n", " "), script.getvalue(), flags=re.M))
