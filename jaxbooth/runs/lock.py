"""Claims a run folder for one configuration, and locks it while a process trains in it."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from jaxbooth.config.load import dump_config, load_config
from jaxbooth.config.run_config import Config, first_conflict
from jaxbooth.config.section import flag
from jaxbooth.console.messages import info
from jaxbooth.console.output import output
from jaxbooth.distributed.group import SingleProcess
from jaxbooth.distributed.run_scope import is_writer
from jaxbooth.errors import UserError
from jaxbooth.runs.checkpoint import free_name
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.metric_writer import SUPERSEDED
from jaxbooth.storage.files import is_unfinished, write_text
from jaxbooth.storage.lock import LOCK, locked
from jaxbooth.storage.remote import as_path, check_reachable, is_local


@contextmanager
def lock_run(
    config: Config,
    processes: SingleProcess,
    on_loss: Callable[[str], None] | None = None,
    is_started: bool = False,
) -> Generator[RunFolder]:
    """Yields the run folder, which is created, or belongs to this configuration; nothing else trains in it meanwhile.

    Process 0 creates, locks and cleans it for all. On an object store it cannot be locked.

    Args:
        on_loss: called with a message, from any thread, when the folder is gone; default: all processes end.
        is_started: the run goes on with a state that is saved elsewhere.

    Raises:
        UserError: the folder holds something else, a run that was started with other settings, or one that is going on.
    """
    run = RunFolder(as_path(config.run_dir))
    check_ownership(run, config)
    with ExitStack() as held:
        try:
            if is_writer() and is_local(run.root):
                held.enter_context(locked(run.root, on_loss or processes.abort))
                check_ownership(run, config)  # another may have been there first
                remove_unfinished(run)
            if is_writer() and not is_started:
                reset_unstarted(run, config)
            if is_writer():
                write_text(run.config, dump_config(config))
        except OSError as error:
            raise UserError(f"--run-dir {run.root} cannot be written ({error.strerror}); choose another.") from None
        processes.exchange("the run folder is locked")
        yield run


def check_ownership(run: RunFolder, config: Config) -> None:
    """Raises UserError if a folder holds something else, or a run that `config` may not continue."""
    check_reachable(run.root)
    if run.config.exists():
        conflict = first_conflict(load_config(run.config), config)
        if conflict and has_result(run):
            key, old, new = conflict
            raise UserError(
                f"{run.root} belongs to a run with {flag(key)} {old}, and this one has {new}; "
                "choose another --run-dir, or set it back to continue that run."
            )
    elif run.root.exists() and (not run.root.is_dir() or any(map(is_foreign, run.root.iterdir()))):
        raise UserError(f"{run.root} exists and is not a run folder; choose another --run-dir.")


def has_result(run: RunFolder) -> bool:
    """Whether a run has come to its first checkpoint; one that has not may begin anew with any settings."""
    steps = run.checkpoints.iterdir() if run.checkpoints.is_dir() else ()
    return run.is_exported or any(path.name.removeprefix("damaged-").isdigit() for path in steps)


def reset_unstarted(run: RunFolder, config: Config) -> None:
    """Removes what ties a run folder without a result to the settings that it was started with.

    Metrics and sample grids are put aside; class images stay and are checked where they are read.
    """
    if not run.config.exists() or has_result(run):
        return
    for path in (run.base_model, run.images, run.selection):
        path.unlink(missing_ok=True)
    if first_conflict(load_config(run.config), config):
        info(f"{run.root} has no checkpoint yet; it begins anew with these settings.")
        samples = run.samples(0).parent
        if samples.exists():
            samples.rename(free_name(samples.with_name(samples.name + SUPERSEDED)))


def is_foreign(path: Path) -> bool:
    """Whether a file is none of those that a run leaves when it is killed before its configuration is written.

    Nor is it the log file of this command, which may lie in the run folder.
    """
    is_log = output.log_file is not None and output.log_file.absolute().is_relative_to(path)
    return path.name != LOCK and not is_unfinished(path) and not is_log


def remove_unfinished(run: RunFolder) -> None:
    """Removes what killed processes have left of single files; only while the run is locked."""
    for path in run.root.rglob(".*"):
        if is_unfinished(path):
            path.unlink()
