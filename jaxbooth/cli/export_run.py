"""What `jaxbooth export` does: writes a run for other tools, checks what was written, and uploads it if asked to."""

from pathlib import Path

from jaxbooth.console.progress import heartbeat
from jaxbooth.export.export import FORMATS, FormatName, default_format, make_export, write_export
from jaxbooth.export.metadata import run_metadata
from jaxbooth.export.model_card import run_model_card
from jaxbooth.export.notes import reader_notes
from jaxbooth.export.upload import check_target, upload_folder
from jaxbooth.export.verify import verify_export
from jaxbooth.export.verify_torch import check_torch, compare_with_torch
from jaxbooth.runs.folder import RunFolder, open_run
from jaxbooth.runs.overlap import check_output
from jaxbooth.runs.restore import confirm_base, read_base, restore_result, run_mesh
from jaxbooth.storage.files import refuse_existing
from jaxbooth.weights.diffusers_write import ExportDtype


@heartbeat()
def export(
    run: str | Path,
    out: Path,
    format: FormatName | None = None,
    dtype: ExportDtype | None = None,
    push: str | None = None,
    public: bool = False,
    license: str | None = None,
    verify: bool = False,
    step: int | None = None,
) -> list[str]:
    """Writes a checkpoint of a run for other tools; returns messages that say what was done.

    Args:
        format: default: the run's default format.
        dtype: of the weights; default: the format's own.
        push: Hub repository ("owner/name") to upload `out` to.
        public: whether a repository that is created may be seen by everyone.
        license: of the pushed model, a Hub identifier.
        verify: also open the result in PyTorch and compare a denoising step.
        step: of the checkpoint; default: the newest.

    Raises:
        UserError: `out` exists, or the run cannot be written so.
        RunFailure: what was written is not what was trained.
    """
    if push:
        check_target(push)
    refuse_existing(out)
    folder, config = open_run(run)
    check_output(out, folder.root, config, allowed="export")
    format = format or default_format(config.lora, config.text)
    if verify:
        check_torch(FORMATS[format])
    base = read_base(config)
    mesh = run_mesh(config)
    confirm_base(folder, base)
    trained, step = restore_result(folder, config, base, mesh, step)
    result = make_export(base, trained, mesh, out, format, dtype, run_metadata(config, trained, step))
    messages = [f"exported step {step} of {run} to {write_export(result)}"]
    messages += verify_export(result)
    if verify:
        messages.append(compare_with_torch(result, config.subjects[0].instance_prompt))
    messages += reader_notes(result)
    if push:
        card = run_model_card(config, result, push, step, license, newest_grid(folder, step))
        messages.append(f"pushed to {upload_folder(out, push, card, private=not public)}")
    return messages


def newest_grid(run: RunFolder, step: int) -> Path | None:
    """Returns the sample grid of a step, or the newest one that there is."""
    grids = sorted(run.samples(step).parent.glob("step_*.png"))
    return run.samples(step) if run.samples(step) in grids else next(reversed(grids), None)
