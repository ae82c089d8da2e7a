"""Creates the folder of a new run: with its configuration complete, or not at all."""

import tempfile
import threading
from pathlib import Path

from jaxbooth.config.load import dump_config
from jaxbooth.config.run_config import Config, resolve_paths
from jaxbooth.errors import UserError
from jaxbooth.runs.folder import CONFIG
from jaxbooth.storage.files import remove_tree, write_text
from jaxbooth.ui.disk_errors import describe_disk_error
from jaxbooth.ui.roots import Roots

_creating = threading.Lock()  # there is one server for a root


def create_run(roots: Roots, name: str, config: Config) -> Path:
    """Creates a run folder with its configuration, whose paths are absolute.

    Raises:
        UserError: the name cannot be used or is taken.
    """
    with _creating:
        folder = roots.new_run(name)
        resolved = resolve_paths(config.model_copy(update={"run_dir": str(folder)}))
        aside = Path(tempfile.mkdtemp(dir=roots.server, prefix="new-"))
        try:
            write_text(aside / CONFIG, dump_config(resolved))
            aside.chmod(0o755)
            aside.rename(folder)
        except OSError as error:
            remove_tree(aside)
            raise UserError(f"{name} cannot be created. {describe_disk_error(error)}") from None
    return folder
