"""The root folder of many runs: whose it is, what of it is done, and each subject's place in it."""

import re
from collections.abc import Mapping, Sequence

from jaxbooth.base.model import BaseModel
from jaxbooth.config.load import dump_config, load_config
from jaxbooth.config.manifest import SubjectRun, check_same_manifest, dump_manifest
from jaxbooth.config.run_config import Config, fill_defaults, first_conflict, resolve_paths
from jaxbooth.config.section import flag
from jaxbooth.errors import UserError
from jaxbooth.runs.checkpoint import checkpoint_steps
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.program_folder import ProgramFolder
from jaxbooth.runs.status import SubjectStatus, read_status
from jaxbooth.storage.files import write_text
from jaxbooth.storage.paths import short_name
from jaxbooth.storage.remote import as_path


def claim_root(folder: ProgramFolder, config: Config, every: Sequence[SubjectRun]) -> None:
    """Writes down what the folder is for, which must be what it was for.

    Raises:
        UserError: it holds something else, another program, or another manifest.
    """
    root = folder.root
    if root.exists() and not folder.program.exists() and any(root.iterdir()):
        raise UserError(f"{root} exists and is no folder of train-many; choose another --run-dir.")
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
    if config.data.class_dir is None and config.data.class_prompt:
        slug = short_name(re.sub(r"\W+", "-", config.data.class_prompt.lower()).strip("-"))
        data = config.data.model_copy(update={"class_dir": folder.class_images / slug})
        config = config.model_copy(update={"data": data})
    return subject._replace(config=config.model_copy(update={"run_dir": str(folder.run(subject.name).root)}))


def is_done(config: Config) -> bool:
    """Whether a subject's run has all its steps and its export."""
    run = RunFolder(as_path(config.run_dir))
    steps = checkpoint_steps(run.checkpoints)
    return bool(steps) and max(steps) >= config.train.steps and (run.is_exported or not config.export)


def read_statuses(
    folder: ProgramFolder, subjects: Sequence[SubjectRun], waiting: Sequence[SubjectRun]
) -> dict[str, SubjectStatus]:
    """Returns the statuses of this shard's subjects; those that wait are queued again, whatever was said of them."""
    recorded: Mapping[str, SubjectStatus] = read_status(folder.status)
    queued = {subject.name for subject in waiting}
    return {
        subject.name: SubjectStatus(0.0, subject.name, "queued" if subject.name in queued else "done")
        if subject.name in queued or subject.name not in recorded
        else recorded[subject.name]
        for subject in subjects
    }
