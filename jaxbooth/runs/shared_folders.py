"""What the processes of a run must have in common: the configuration, and the folders that they write and read."""

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag, flatten
from jaxbooth.console.messages import is_main
from jaxbooth.distributed.group import SingleProcess
from jaxbooth.errors import UserError

PATIENCE = 15.0  # seconds until a network file system shows on one host what another has written


def shared_settings(config: Config) -> dict[str, str]:
    """Returns flag -> value as text, which must be equal on all processes."""
    return {flag(key): str(value) for key, value in flatten(config).items()}


def check_shared_folders(folders: Sequence[Path], processes: SingleProcess) -> None:
    """Makes sure that folders, which are created when missing, are the same on all hosts.

    Raises:
        UserError: one is not; the message names it and the processes that do not see it.
    """
    names = processes.exchange(f".shared-{secrets.token_hex(8)}")
    if len(names) == 1:
        return
    for folder in folders:
        probe = folder / names[0]
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
        processes.exchange("written")
        is_seen = processes.exchange(appears(probe))
        if is_main():
            probe.unlink()
        if not all(is_seen):
            blind = ", ".join(str(process_id) for process_id, sees in enumerate(is_seen) if not sees)
            raise UserError(
                f"{folder} is not one folder for all processes: process {blind} does not see what process 0 writes "
                "there; name a folder on a shared file system, or gs://BUCKET/FOLDER."
            )


def appears(path: Path) -> bool:
    """Waits for a file."""
    end = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True
