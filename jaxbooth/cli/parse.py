"""Command-line arguments become validated models; whatever is wrong with them becomes one message."""

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
    """Removes the name of the configuration from the arguments, and reads the configuration."""
    source = argv.pop(0) if argv and not argv[0].startswith("-") else None
    keys = {argument.split("=")[0].removeprefix("--").replace("-", "_") for argument in argv}
    return reset_dependent_keys(load_config(source), keys)


def parse(model: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """Parses flags into a model.

    Args:
        prog: the command, as the help shows it.
        default: values of the flags that are not given.

    Raises:
        UserError: a flag is unknown, missing or not valid.
    """
    check_flags(model, argv, f"jaxbooth {prog.split()[1]}", TRAINERS if issubclass(model, Config) else PIPELINES)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            if default is None:
                return tyro.cli(model, args=argv, prog=prog)
            return tyro.cli(model, args=argv, prog=prog, default=default)
    except SystemExit as stop:
        validation_error = find_validation_error(stop)
        if validation_error:
            raise to_user_error(validation_error, None) from None
        if not printed.getvalue():
            raise
        raise UserError(parse_error(printed.getvalue(), f"jaxbooth {prog.split()[1]}")) from None


def find_validation_error(error: BaseException | None) -> ValidationError | None:
    """Returns the validation error that led to an exception, or None."""
    while error is not None and not isinstance(error, ValidationError):
        error = error.__context__
    return error
