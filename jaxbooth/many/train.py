"""`train_many`: a manifest of subjects becomes a folder of runs."""

import resource
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout
from jax.sharding import Mesh

from jaxbooth.backend import enable_compilation_cache, warn_about_cpu_fallback
from jaxbooth.base.encoded_prompts import EncodedPrompts, encode_ahead
from jaxbooth.base.model import BaseModel
from jaxbooth.config.load import load_config, with_overrides
from jaxbooth.config.manifest import SubjectRun, dump_manifest, read_manifest, take_shard
from jaxbooth.config.rules import check_config
from jaxbooth.config.run_config import Config, fill_defaults, resolve_paths
from jaxbooth.config.schema import DistributedConfig, MeshConfig
from jaxbooth.console.messages import info, is_main, pluralize, print_result, warn
from jaxbooth.console.numbers import GIB
from jaxbooth.console.output import output
from jaxbooth.console.progress import heartbeat
from jaxbooth.distributed.group import SingleProcess, process_group
from jaxbooth.distributed.process_info import find_process
from jaxbooth.distributed.run_scope import independent_processes
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.many.device_slots import DeviceSlots
from jaxbooth.many.disk_needs import check_disks
from jaxbooth.many.long_prompts import warn_about_long_prompts
from jaxbooth.many.loop import ManyLoop
from jaxbooth.many.program import make_program, slots_for
from jaxbooth.many.root import claim_root, complete_subject, is_done, read_statuses
from jaxbooth.many.rules import check_many
from jaxbooth.many.saves import SUFFIX, SavedStates, digest, read_all_saved, run_identity
from jaxbooth.plan.fit import resolve_remat
from jaxbooth.plan.hardware import mesh_topology
from jaxbooth.plan.subjects import slot_estimate
from jaxbooth.runs.inputs import check_model, scan_inputs
from jaxbooth.runs.program_folder import ProgramFolder
from jaxbooth.runs.prompts import sampled_prompts, training_captions
from jaxbooth.runs.restore import abstract_run_state, read_base
from jaxbooth.runs.shared_folders import check_shared_folders, shared_settings
from jaxbooth.runs.start_notes import log_prior, log_quantization, warn_about_distillation
from jaxbooth.runs.status import Outcome, StatusLog, count_states, outcome_of
from jaxbooth.runs.status_table import status_display
from jaxbooth.runs.validation import distinct
from jaxbooth.sharding import axis_sizes, check_heads, divisors, make_mesh
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
    flags = config.distributed
    config = config.model_copy(update={"distributed": DistributedConfig()})  # it differs between the processes
    check_many(config)
    every = read_manifest(manifest, config)
    shard = shard or ALONE
    subjects = take_shard(every, shard)
    check_first(subjects)
    process = find_process(flags.coordinator, flags.num_processes, flags.process_id, flags.timeout)
    must_match = shared_settings(config) | {
        "--slots": str(slots), "--shard": shard, "a manifest with the digest": digest(dump_manifest(every).encode()),
    }  # fmt: skip
    again = f"stopped; run the same command again to continue {config.run_dir}."
    with (
        process_group(process, must_match, flags.timeout, again, in_step=False) as processes,
        independent_processes(),
    ):
        failure = train_joined(resolve_paths(config), every, subjects, slots, shard, processes)
    if failure:
        raise RunFailure(failure)


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
) -> str | None:
    """Trains as one of `processes`, each of which takes its part of the subjects; returns what failed of them, if any.

    They start, stop and end together. In between none waits for another, for no subject needs more than one host.
    """
    enable_compilation_cache()
    warn_about_cpu_fallback()
    folder = ProgramFolder(as_path(config.run_dir))
    check_shared_folders([folder.root], processes)
    if is_main():
        claim_root(folder, config, every)
        folder.checkpoints.mkdir(exist_ok=True)
    hosts = len(processes.exchange("the root is claimed"))
    raise_open_files()
    own = take_shard(subjects, f"{jax.process_index() + 1}/{hosts}")
    number, shards = map(int, shard.split("/"))
    part, parts = (number - 1) * hosts + jax.process_index() + 1, shards * hosts
    saves = folder.checkpoints / f"shard-{part}-of-{parts}{SUFFIX}"
    slots = slots and -(-slots // hosts)
    try:
        with FileLock(saves.with_suffix(".lock"), timeout=0):
            ended = train_locked(config, folder, own, slots, saves, processes)
    except Timeout:
        raise UserError(
            f"{folder.root} is being trained by another process (its shard {part}/{parts}); wait for its end, or give "
            "each process a --shard of its own."
        ) from None
    return conclude(folder.root, ended, processes)


def conclude(root: Path, own: Outcome, processes: SingleProcess) -> str | None:
    """Waits for all processes, and prints how their subjects ended; returns a sentence if some failed."""
    ends = processes.exchange({"outcome": own, "is_stopped": processes.stop_agreement.is_stopping})
    together = Outcome.sum(Outcome(*end["outcome"]) for end in ends)
    if together.unfinished and any(end["is_stopped"] for end in ends):
        print_result(f"stopped and saved; run the same command again to continue {root}.")
        return None
    if not together.failed:
        print_result(f"done: {root}, {together.sentence}")
        return None
    return together.sentence if is_main() else f"process {jax.process_index()} of {len(ends)}: {own.sentence}"


def train_locked(
    config: Config,
    folder: ProgramFolder,
    subjects: Sequence[SubjectRun],
    slots: int | None,
    saves: Path,
    processes: SingleProcess,
) -> Outcome:
    """Trains the subjects of this process that are not done.

    Args:
        slots: of this process.
        saves: file for the states of those in slots.
    """
    mesh = own_mesh(config.mesh)
    base = read_base(config)
    check_heads(mesh.shape["tensor"], base.attention_heads)
    config = fill_defaults(config, base.native_resolution, base.sampling)
    check_model(config, base)
    warn_about_distillation(base.distillation)
    log_prior(config, base)
    log_quantization(base)
    complete = [complete_subject(subject, folder, base) for subject in subjects]
    waiting = [subject for subject in complete if not is_done(subject.config)]
    names = [subject.name for subject in complete]
    statuses = read_statuses(folder.status, complete, waiting)
    if waiting:
        config, count = choose_slots(config, base, mesh, slots, len(waiting))
        check_disks(folder, waiting, base, abstract_run_state(config, base, mesh), count)
        info(f"{pluralize(len(waiting), 'subject')} to train, {count} at once")
        warn_about_long_prompts(waiting, base)
        encoded = encode_all(waiting, base, mesh) if base.text.runs_once else None
        program = make_program(config, base, mesh, count, waiting[0].config, encoded, folder.checkpoints)
        identities = {subject.name: run_identity(subject.config) for subject in waiting}
        with (
            closing(StatusLog(folder.status)) as log,
            status_display([], count_states(statuses, names), config.train.steps) as display,
        ):
            ManyLoop(
                program=program,
                slots=DeviceSlots(mesh, count, program.example),
                queue=iter(waiting),
                saved=SavedStates(saves, read_all_saved(folder.checkpoints, identities, program.example)),
                log=log,
                names=names,
                statuses=statuses,
                processes=processes,
                display=display,
            ).run()
    return outcome_of(statuses, names)


def own_mesh(sizes: MeshConfig) -> Mesh:
    """Returns the part of the mesh that this host's devices are.

    Raises:
        UserError: the axes do not fit the devices, or copies of the base model do not fit into a host.
    """
    _, fsdp, tensor = axis_sizes(sizes.data, sizes.fsdp, sizes.tensor, jax.device_count())
    devices = jax.local_devices()
    if len(devices) % (fsdp * tensor):
        raise UserError(
            f"--mesh.fsdp {fsdp} x --mesh.tensor {tensor} reaches over hosts of {pluralize(len(devices), 'device')}, "
            f"and train-many keeps each subject on one; a product of {divisors(len(devices))} would do."
        )
    return make_mesh(-1, fsdp, tensor, devices)


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
    [encoded] = encode_ahead(base, mesh, distinct(prompts), on_host=True)
    return encoded
