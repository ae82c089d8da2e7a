"""The short commands as library functions."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxbooth.backend import enable_compilation_cache, warn_about_cpu_fallback
from jaxbooth.base.sampling import SamplingConfig
from jaxbooth.base.text_encoder import warn_about_truncation
from jaxbooth.config.load import load_config
from jaxbooth.console.messages import pluralize
from jaxbooth.console.progress import heartbeat
from jaxbooth.data.image_grid import image_grid, shrink
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.errors import UserError
from jaxbooth.export.export import FORMATS, FormatName, default_format, make_export, write_export
from jaxbooth.export.metadata import run_metadata
from jaxbooth.export.model_card import run_model_card
from jaxbooth.export.notes import reader_notes
from jaxbooth.export.upload import check_target, upload_folder
from jaxbooth.export.verify import verify_export
from jaxbooth.export.verify_torch import check_torch, compare_with_torch
from jaxbooth.pipeline import Pipeline
from jaxbooth.runs.folder import RunFolder, open_run
from jaxbooth.runs.overlap import check_output, check_output_of_model
from jaxbooth.runs.restore import confirm_base, read_base, restore_result, run_mesh
from jaxbooth.storage.disk import check_writable
from jaxbooth.storage.files import refuse_existing, write_png
from jaxbooth.storage.remote import as_path
from jaxbooth.weights.diffusers_write import ExportDtype
from jaxbooth.weights.resolve import Source

MAX_INDEX = 10**9  # numbers of images have nine digits at most
SHEETS = "contact_sheets"  # below the images' folder, so that it holds nothing else
SHEET_COLUMNS, SHEET_TILES = 4, 200
SHEET_SIDE = 256  # pixels of a tile's longer side


class SampleResult(NamedTuple):
    """What `sample` wrote.

    Attributes:
        images: one file for each number.
        contact_sheet: all of them, labelled with their names.
        description: the settings in words.
    """

    images: list[Path]
    contact_sheet: Path
    description: str


@heartbeat()
def sample(
    source: str | Source,
    prompt: str,
    out: Path,
    negative_prompt: str = "",
    num: int = 4,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: SamplerName | None = None,
    resolution: int | None = None,
    height: int | None = None,
    width: int | None = None,
    clip_skip: int = 0,
    max_token_chunks: int = 1,
    step: int | None = None,
) -> SampleResult:
    """Draws the next `num` images of a seed and saves each as `<seed>-<number>.png`, and a contact sheet of them.

    Numbers go on from the highest that the folder has of the seed. Image i depends on (seed, i) alone, so those of
    two calls are those of a longer one.

    Args:
        steps, guidance_scale, sampler: default: those of the run's sample grids, or what suits the model.

    Raises:
        UserError: nothing usable is there, or `out` is a file.
    """
    if not prompt.strip():
        raise UserError("--prompt is empty; say what to draw.")
    name = source if isinstance(source, str) else source.name
    check_sample_folder(out, name)
    first = next_index(out, seed)
    if first + num > MAX_INDEX:
        raise UserError(f"--out {out} holds an image numbered {first - 1} of seed {seed}; choose another folder.")
    enable_compilation_cache()
    warn_about_cpu_fallback()
    pipeline = Pipeline.load(source, clip_skip=clip_skip, max_token_chunks=max_token_chunks, step=step)
    warn_about_truncation(pipeline.base.text, [prompt, negative_prompt])
    how = pipeline.defaults.override(sampler, steps, guidance_scale)
    settings = SamplingConfig(*how, resolution or pipeline.resolution, negative_prompt, height, width)
    facts = {
        "prompt": prompt,
        "seed": seed,
        "model": name,
        "step": pipeline.step,
    } | settings.metadata()
    numbers = range(first, first + num)
    images, tiles = [], []
    for number, image in zip(numbers, pipeline.generate(settings, prompt, numbers, seed), strict=True):
        images.append(out / f"{seed}-{number:03d}.png")
        write_png(images[-1], image, facts | {"index": number})
        tiles += [shrink(np.asarray(image), SHEET_SIDE)] if len(tiles) < SHEET_TILES else []
    path = out / SHEETS / f"{images[0].stem}-to-{numbers[-1]:03d}.png"
    labels = [path.stem for path in images[: len(tiles)]]
    write_png(path, image_grid(tiles, labels, min(SHEET_COLUMNS, len(tiles)), lines=1), facts)
    guidance = f"guidance {how.guidance_scale:g}" if how.guidance_scale != 1 else "no guidance"
    return SampleResult(images, path, f"{how.sampler}, {pluralize(how.steps, 'step')}, {guidance}")


def next_index(out: Path, seed: int) -> int:
    """Returns the number after the highest of a seed's images in a folder, which need not exist; 0 at first."""
    pattern = re.compile(rf"{seed}-([0-9]{{3,9}})\.png")
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    return max((int(match[1]) + 1 for name in names if (match := pattern.fullmatch(name))), default=0)


def check_sample_folder(out: Path, source: str) -> None:
    """Raises UserError if images of a run or a model cannot be saved in a folder, or would mix with its parts."""
    check_writable(out, "--out")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder.")
    run = RunFolder(as_path(source))
    if run.config.exists():
        check_output(out, run.root, load_config(run.config))
    else:
        check_output_of_model(out, source)


@heartbeat()
def export(
    run_dir: str | Path,
    out: Path,
    format: FormatName | None = None,
    dtype: ExportDtype | None = None,
    push: str | None = None,
    public: bool = False,
    license: str | None = None,
    verify: bool = False,
    step: int | None = None,
) -> list[str]:
    """Writes a checkpoint of a run for other tools; returns what was done, in sentences.

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
    run, config = open_run(run_dir)
    check_output(out, run.root, config, allowed="export")
    format = format or default_format(config.lora, config.text)
    if verify:
        check_torch(FORMATS[format])
    base, mesh = read_base(config), run_mesh(config)
    confirm_base(run, base)
    trained, step = restore_result(run, config, base, mesh, step)
    result = make_export(base, trained, mesh, out, format, dtype, run_metadata(config, trained, step))
    done = [f"exported step {step} of {run_dir} to {write_export(result)}"]
    done += verify_export(result)
    done += [compare_with_torch(result, config.subjects[0].instance_prompt)] if verify else []
    done += reader_notes(result)
    if push:
        card = run_model_card(config, result, push, step, license, newest_grid(run, step))
        done.append(f"pushed to {upload_folder(out, push, card, private=not public)}")
    return done


def newest_grid(run: RunFolder, step: int) -> Path | None:
    """Returns the sample grid of a step, or the newest one that there is."""
    grids = sorted(run.samples(step).parent.glob("step_*.png"))
    return run.samples(step) if run.samples(step) in grids else next(reversed(grids), None)
