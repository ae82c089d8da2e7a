"""`train`: the whole job, from a configuration to a trained, sampled and exported run."""

from pathlib import Path
from typing import Any

import jax

from jaxbooth.backend import enable_compilation_cache, warn_about_cpu_fallback
from jaxbooth.base.trainable import trained_shapes, unused_parameters
from jaxbooth.config.load import load_config, with_overrides
from jaxbooth.config.rates import learning_rates
from jaxbooth.config.rules import check_config
from jaxbooth.config.run_config import Config, fill_defaults, resolve_paths
from jaxbooth.config.schema import DistributedConfig
from jaxbooth.console.progress import heartbeat
from jaxbooth.data.training_images import TrainingImages
from jaxbooth.distributed.group import SingleProcess, process_group
from jaxbooth.distributed.process_info import find_process
from jaxbooth.plan.fit import check_memory, fit_to_memory
from jaxbooth.runs.caption_notes import log_captions
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.runs.contact_sheet import contact_sheet, write_contact_sheet
from jaxbooth.runs.disk_needs import check_folders
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.inputs import read_inputs
from jaxbooth.runs.lock import check_ownership, lock_run
from jaxbooth.runs.overlap import check_run_folders
from jaxbooth.runs.restore import abstract_run_state, confirm_base, read_base
from jaxbooth.runs.shared_folders import check_shared_folders, shared_settings
from jaxbooth.runs.start_notes import log_prior, log_prompts, log_quantization, warn_about_distillation
from jaxbooth.runs.training_run import Result, TrainingRun
from jaxbooth.sharding import check_heads, make_mesh
from jaxbooth.storage.remote import as_path
from jaxbooth.training.optimizer import make_optimizer


def train(config: Config | str | Path | None = None, **overrides: Any) -> Result:
    """Trains, or continues a run that was interrupted. See the README for what the run folder holds.

    Args:
        config: a configuration, or what `load_config` reads: a YAML file, the name of a shipped one, None for defaults.
        overrides: other values, `train("demo", run_dir="runs/mine", train={"steps": 100})` or
            `train("demo", **{"train.steps": 100})`.

    Raises:
        UserError: the input cannot be used as it is.
        RunFailure: the work failed; everything written so far is intact.
    """
    config = config if isinstance(config, Config) else load_config(config)
    config = with_overrides(config, overrides) if overrides else config
    check_config(config)
    check_run_folders(resolve_paths(config))
    flags = config.distributed
    process = find_process(flags.coordinator, flags.num_processes, flags.process_id, flags.timeout)
    config = config.model_copy(update={"distributed": DistributedConfig()})  # it differs between the processes
    how_to_continue = f"stopped; run the same command again to continue {config.run_dir}."
    with process_group(process, shared_settings(config), flags.timeout, how_to_continue) as processes:
        return train_joined(resolve_paths(config), processes)


@heartbeat()
def train_joined(config: Config, processes: SingleProcess) -> Result:
    """Trains as one of `processes`."""
    enable_compilation_cache()
    warn_about_cpu_fallback()
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    base = read_base(config)
    config = fill_defaults(config, base.native_resolution, base.sampling)
    if config.fit:
        config = fit_to_memory(as_fitted_before(config), base, mesh)
        mesh, base = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor), read_base(config)
    check_heads(mesh.shape["tensor"], base.attention_heads)
    no_gradient = unused_parameters(base, trained_shapes(base, config))
    optimizer = make_optimizer(config.train, learning_rates(config), no_gradient)
    inputs = read_inputs(config, base)
    warn_about_distillation(base.distillation)
    held_out = [file.caption for file in inputs.held_out_images]
    log_prompts(config, base.text, [*(prompt for file in inputs.images for prompt in file.prompts), *held_out])
    log_captions(config, base.text.encoders[0].tokenizer, [folder.images for folder in inputs.instances])
    log_prior(config, base)
    log_quantization(base)
    run_config = check_memory(config, base, mesh)
    images = TrainingImages(config.resolution, config.data.masks)
    sheet = contact_sheet(config, inputs, images)
    run = RunFolder(as_path(config.run_dir))
    check_ownership(run, config)
    before = load_config(run.config) if run.config.exists() else config  # it is replaced when the folder is locked
    check_folders(config, base, inputs.classes, abstract_run_state(config, base, mesh))
    with lock_run(config, processes) as run:
        check_shared_folders([run.root, *(classes.folder for classes in inputs.classes)], processes)
        confirm_base(run, base, record=True)
        write_contact_sheet(run, sheet)
        checkpoints = Checkpoints(run.checkpoints, config.train.max_checkpoints)
        training = TrainingRun(run_config, before, run, inputs, images, mesh, optimizer, checkpoints, processes)
        try:
            result = training.execute()
        except BaseException as error:
            processes.fail(error)
            if jax.process_count() == 1:  # several would wait for each other
                checkpoints.close()
            raise
        checkpoints.close()
        return result


def as_fitted_before(config: Config) -> Config:
    """Returns a run with what `--fit` changed when it was started, and what must stay, wherever it is continued."""
    saved = RunFolder(as_path(config.run_dir)).config
    before = load_config(saved) if saved.exists() else config
    if not before.fit:
        return config
    lora = config.lora.model_copy(update={"rank": before.lora.rank})
    return config.model_copy(update={"model_quantization": before.model_quantization, "lora": lora})
