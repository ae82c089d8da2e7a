"""The root folder of many runs: whose it is, what of it is done, and each subject's place in it."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from jaxbooth.base.model import BaseModel
from jaxbooth.config.load import dump_config, load_config
from jaxbooth.config.manifest import SubjectRun, check_same_manifest, dump_manifest
from jaxbooth.config.run_config import Config, fill_defaults, first_conflict, resolve_paths
from jaxbooth.config.section import flag
from jaxbooth.errors import UserError
from jaxbooth.runs.checkpoint import checkpoint_steps
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.lock import is_foreign
from jaxbooth.runs.program_folder import ProgramFolder
from jaxbooth.runs.status import StatusLog, SubjectStatus, read_status
from jaxbooth.storage.files import write_text
from jaxbooth.storage.paths import short_name
from jaxbooth.storage.remote import as_path


def claim_root(folder: ProgramFolder, config: Config, every: Sequence[SubjectRun]) -> None:
    """Writes down what the folder is for, which must be what it was for.

    Raises:
        UserError: it holds something else, another program, or another manifest.
    """
    root = folder.root
    if root.exists() and not folder.program.exists() and any(map(is_foreign, root.iterdir())):
        raise UserError(f"{root} exists and is no folder of train-many; choose another --run-dir.")
    # Photos are each subject's own; those of the configuration, such as the demo's, are not the program's.
    config = config.model_copy(update={"data": config.data.model_copy(update={"instance_dir": None})})
    if folder.program.exists():
        conflict = first_conflict(load_config(folder.program), config)
        if conflict:
            key, old, new = conflict
            raise UserError(
                f"{root} belongs to runs with {flag(key)} {old}, and this command has {new}; choose another --run-dir, "
                "or set it back to continue them."
            )
    failed = [name for name, status in read_status(folder.status).items() if status.state == "failed"]
    check_same_manifest(folder.manifest, every, failed)
    write_text(folder.program, dump_config(config))
    write_text(folder.manifest, dump_manifest(every))


def complete_subject(subject: SubjectRun, folder: ProgramFolder, base: BaseModel) -> SubjectRun:
    """Returns a subject with absolute paths, the base model's defaults and the class folder that its class shares."""
    config = resolve_paths(subject.config)
    config = fill_defaults(config, base.native_resolution, base.sampling)
    data = config.data.model_copy(update={"class_dir": class_folder(config, folder)})
    run_dir = str(folder.run(subject.name).root)
    return subject._replace(config=config.model_copy(update={"data": data, "run_dir": run_dir}))


def class_folder(config: Config, folder: ProgramFolder) -> Path | None:
    """Returns where a subject's class images are: in its own folder, or in that of its class if there are any."""
    data = config.data
    if data.class_dir is None and data.class_prompt and config.prior.uses_class_images:
        return folder.class_images / class_name(data.class_prompt)
    return data.class_dir


def class_name(prompt: str) -> str:
    """Returns the folder of a class, "a-photo-of-dog-3f2a1c": prompts that look alike have different ones."""
    words = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    return f"{short_name(words)}-{hashlib.blake2b(prompt.encode(), digest_size=3).hexdigest()}"


def is_done(config: Config) -> bool:
    """Whether a subject's run has all its steps and its export."""
    run = RunFolder(as_path(config.run_dir))
    steps = checkpoint_steps(run.checkpoints)
    return bool(steps) and max(steps) >= config.train.steps and (run.is_exported or not config.export)


def read_statuses(
    path: Path, subjects: Sequence[SubjectRun], waiting: Sequence[SubjectRun]
) -> dict[str, SubjectStatus]:
    """Returns the statuses of this shard's subjects: those that wait are queued, and the others done.

    Where `path` says something else of one that is done, since a process was killed before it could, that is mended.
    """
    recorded, queued = read_status(path), {subject.name for subject in waiting}
    log, statuses = StatusLog(path), {}
    with closing(log):
        for name, config, _ in subjects:
            steps = config.train.steps
            if name not in queued and (name not in recorded or recorded[name].state != "done"):
                log.add(name, "done", steps, steps)
            statuses[name] = SubjectStatus(0.0, name, "queued" if name in queued else "done", None, steps)
    return statuses
