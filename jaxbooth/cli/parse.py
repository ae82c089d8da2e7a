"""From arguments as they are typed to a checked model; whatever is wrong with them is one sentence."""

import contextlib
import io
from typing import TypeVar

import tyro
from pydantic import BaseModel, ValidationError

from jaxbooth.cli.parse_errors import parse_error
from jaxbooth.config.load import load_config, reset_dependent_keys, to_user_error
from jaxbooth.config.run_config import Config
from jaxbooth.config.suggestions import PIPELINES, TRAINERS, check_flags
from jaxbooth.errors import UserError

T = TypeVar("T", bound=BaseModel)


def starting_config(argv: list[str]) -> Config:
    """Takes the configuration's name off the arguments and reads it."""
    source = argv.pop(0) if argv and not argv[0].startswith("-") else None
    given = {argument.split("=")[0].removeprefix("--").replace("-", "_") for argument in argv}
    return reset_dependent_keys(load_config(source), given)


def parse(kind: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """Parses flags into a model; what is wrong with them becomes one sentence instead of a box or a report."""
    check_flags(kind, argv, f"jaxbooth {prog.split()[1]}", TRAINERS if issubclass(kind, Config) else PIPELINES)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            if default is None:
                return tyro.cli(kind, args=argv, prog=prog)
            return tyro.cli(kind, args=argv, prog=prog, default=default)
    except SystemExit as stop:
        invalid = validation_behind(stop)
        if invalid:
            raise to_user_error(invalid, None) from None
        if not printed.getvalue():
            raise
        raise UserError(parse_error(printed.getvalue(), f"jaxbooth {prog.split()[1]}")) from None


def validation_behind(error: BaseException | None) -> ValidationError | None:
    """Returns the validator's report that led to `error`, if one did."""
    while error is not None and not isinstance(error, ValidationError):
        error = error.__context__
    return error
