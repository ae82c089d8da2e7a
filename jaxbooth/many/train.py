"""`train_many`: a manifest of subjects becomes a folder of runs."""

import resource
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from jax.sharding import Mesh

from jaxbooth.backend import enable_compilation_cache, warn_about_cpu_fallback
from jaxbooth.base.encoded_prompts import EncodedPrompts, encode_ahead
from jaxbooth.base.model import BaseModel
from jaxbooth.config.load import load_config, with_overrides
from jaxbooth.config.manifest import SubjectRun, read_manifest, take_shard
from jaxbooth.config.rules import check_config
from jaxbooth.config.run_config import Config, fill_defaults, resolve_paths
from jaxbooth.console.messages import info, pluralize, print_result, warn
from jaxbooth.console.numbers import GIB
from jaxbooth.console.output import output
from jaxbooth.console.progress import heartbeat
from jaxbooth.distributed.group import SingleProcess, process_group
from jaxbooth.distributed.process_info import find_process
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.many.device_slots import DeviceSlots
from jaxbooth.many.loop import ManyLoop
from jaxbooth.many.program import make_program, slots_for
from jaxbooth.many.root import claim_root, complete_subject, is_done, read_statuses
from jaxbooth.many.rules import check_many
from jaxbooth.many.saves import SUFFIX, read_all_saved, run_identity
from jaxbooth.plan.fit import resolve_remat
from jaxbooth.plan.hardware import mesh_topology
from jaxbooth.plan.subjects import slot_estimate
from jaxbooth.runs.inputs import check_model, scan_inputs
from jaxbooth.runs.program_folder import ProgramFolder
from jaxbooth.runs.prompts import sampled_prompts, training_captions
from jaxbooth.runs.restore import read_base
from jaxbooth.runs.start_notes import log_prior, warn_about_distillation
from jaxbooth.runs.status import StatusLog, count_states, summary
from jaxbooth.runs.status_table import status_display
from jaxbooth.runs.validation import distinct
from jaxbooth.sharding import check_heads, make_mesh
from jaxbooth.storage.remote import as_path

ALONE = "1/1"


def train_many(
    manifest: str | Path,
    config: Config | str | Path | None = None,
    slots: int | None = None,
    shard: str | None = None,
    **overrides: Any,
) -> None:
    """Trains every subject of a manifest, or continues where an earlier call was interrupted.

    Args:
        manifest: see `config.manifest.read_manifest`.
        config: what all subjects share, as `train` takes it; its `run_dir` is the folder of all runs.
        slots: subjects that are trained side by side.
        shard: "I/N": take that share of the manifest alone.
        overrides: see `train`.

    Raises:
        UserError: the input cannot be used as it is.
        RunFailure: some subjects failed; the others are done.
    """
    config = config if isinstance(config, Config) else load_config(config)
    config = with_overrides(config, overrides) if overrides else config
    check_many(config)
    every = read_manifest(manifest, config)
    shard = shard or ALONE
    subjects = take_shard(every, shard)
    check_first(subjects)
    flags = config.distributed
    process = find_process(flags.coordinator, flags.num_processes, flags.process_id, flags.timeout)
    if process is not None and process.num_processes > 1:
        raise UserError(
            f"this is one of {process.num_processes} processes that start together, and train-many is a single one; "
            "start each by itself, with a share of the manifest (--shard)."
        )
    again = f"stopped; run the same command again to continue {config.run_dir}."
    with process_group(process, {}, flags.timeout, again) as processes:
        train_joined(resolve_paths(config), every, subjects, slots, shard, processes)


def check_first(subjects: Sequence[SubjectRun]) -> None:
    """Checks the configuration of one subject, of which most is that of all."""
    for subject in subjects[:1]:
        try:
            check_config(subject.config)
        except UserError as error:
            raise UserError(f"{subject.where}: {error}") from None


@heartbeat()
def train_joined(
    config: Config,
    every: Sequence[SubjectRun],
    subjects: Sequence[SubjectRun],
    slots: int | None,
    shard: str,
    processes: SingleProcess,
) -> None:
    """Trains as the only process."""
    enable_compilation_cache()
    warn_about_cpu_fallback()
    folder = ProgramFolder(as_path(config.run_dir))
    claim_root(folder, config, every)
    folder.checkpoints.mkdir(exist_ok=True)
    raise_open_files()
    number, shards = map(int, shard.split("/"))
    saves = folder.checkpoints / f"shard-{number}-of-{shards}{SUFFIX}"
    lock = FileLock(saves.with_suffix(".lock"), timeout=0)
    try:
        with lock:
            train_locked(config, folder, subjects, slots, saves, processes)
    except Timeout:
        raise UserError(
            f"{folder.root} is being trained by another process (its shard {shard}); wait for its end, or give each "
            "process a --shard of its own."
        ) from None


def train_locked(
    config: Config,
    folder: ProgramFolder,
    subjects: Sequence[SubjectRun],
    slots: int | None,
    saves: Path,
    processes: SingleProcess,
) -> None:
    """Trains the subjects of a shard that are not done.

    Args:
        saves: file for the states of those in slots.
    """
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    base = read_base(config)
    check_heads(mesh.shape["tensor"], base.attention_heads)
    config = fill_defaults(config, base.native_resolution, base.sampling)
    check_model(config, base)
    warn_about_distillation(base.distillation)
    log_prior(config, base)
    complete = [complete_subject(subject, folder, base) for subject in subjects]
    waiting = [subject for subject in complete if not is_done(subject.config)]
    names = [subject.name for subject in complete]
    statuses = read_statuses(folder.status, complete, waiting)
    if waiting:
        config, count = choose_slots(config, base, mesh, slots, len(waiting))
        info(f"{pluralize(len(waiting), 'subject')} to train, {count} at once")
        encoded = encode_all(waiting, base, mesh) if base.text.runs_once else None
        program = make_program(config, base, mesh, count, waiting[0].config, encoded, folder.checkpoints)
        identities = {subject.name: run_identity(subject.config) for subject in waiting}
        with (
            closing(StatusLog(folder.status)) as log,
            status_display([], count_states(statuses, names), config.train.steps) as display,
        ):
            loop = ManyLoop(
                program=program,
                slots=DeviceSlots(mesh, count, program.example),
                queue=iter(waiting),
                saved=read_all_saved(folder.checkpoints, identities, program.example),
                saves=saves,
                log=log,
                names=names,
                statuses=statuses,
                processes=processes,
                display=display,
            )
            is_complete = loop.run()
        if not is_complete:
            print_result(f"stopped and saved; run the same command again to continue {folder.root}.")
            return
    sentence = summary(statuses, names)
    if any(status.state == "failed" for status in statuses.values()):
        raise RunFailure(sentence)
    print_result(f"done: {folder.root}, {sentence}")


def raise_open_files() -> None:
    """Lets this process have as many files open as it may: each subject in a slot has a few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def choose_slots(config: Config, base: BaseModel, mesh: Mesh, wanted: int | None, subjects: int) -> tuple[Config, int]:
    """Returns how many subjects train side by side, and the program with a named `--train.remat`.

    That is as many as fit, and never more than there are, rounded up to what the devices share evenly.

    Raises:
        UserError: they do not fit, and `--force` was not given.
    """
    config, estimated = resolve_remat(config, base, mesh_topology(mesh))
    slots_of = slot_estimate(config, base, estimated)
    largest = slots_of.largest(subjects)
    if wanted and wanted > subjects:
        warn(f"--slots {wanted} is more than the {pluralize(subjects, 'subject')} left to train; {subjects} are used.")
    slots = slots_for(min(wanted or max(largest, 1), subjects), mesh)
    if not slots_of.fits(slots) and not config.force:
        needed, limit = slots_of.at(slots).hbm_bytes, estimated.topology.chip.memory
        fitting = f"{largest} fit" if largest else "not even one on each device fits"
        raise UserError(
            f"{slots} slots need {needed / GIB:.1f} of the device's {(limit or 0) / GIB:.1f} GiB, and {fitting}; set "
            "--slots, --train.remat or --mesh.fsdp, or see `jaxbooth plan --subjects`."
        )
    return config, slots


def encode_all(subjects: Sequence[SubjectRun], base: BaseModel, mesh: Mesh) -> EncodedPrompts:
    """Encodes the prompts of all subjects ahead, for a text encoder that is dropped before the denoiser is loaded."""
    prompts = [""]
    for subject in subjects:
        try:
            with output.muted():
                inputs = scan_inputs(subject.config, base)
                prompts += [*training_captions(subject.config, inputs), *sampled_prompts(subject.config, inputs)]
        except Exception:
            continue  # it fails when its turn comes, and is reported then
    [encoded] = encode_ahead(base, mesh, distinct(prompts))
    return encoded
