"""What `jaxbooth sample` does: generates images into a folder, with a contact sheet of them."""

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
from jaxbooth.models.quantization import Quantization
from jaxbooth.pipeline import Pipeline
from jaxbooth.runs.folder import RunFolder
from jaxbooth.runs.overlap import check_output, check_output_of_model
from jaxbooth.storage.disk import check_writable
from jaxbooth.storage.files import write_png
from jaxbooth.storage.remote import as_path
from jaxbooth.weights.source import Source

MAX_INDEX = 10**9  # file names have at most nine digits
CONTACT_SHEETS = "contact_sheets"  # a subfolder, so that the folder itself holds the images alone
SHEET_COLUMNS = 4
SHEET_TILES = 200
TILE_SIDE = 256  # pixels of a tile's longer side


class SampleResult(NamedTuple):
    """What `sample` wrote.

    Attributes:
        images: the files.
        contact_sheet: all of them in one image, labelled with their names.
        description: sampler, steps and guidance in words.
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
    model_quantization: Quantization = "none",
) -> SampleResult:
    """Generates the next `num` images of a seed, saves each as `<seed>-<index>.png`, and makes a contact sheet of them.

    Indices continue from the highest that the folder has of this seed. Image i depends on (seed, i) alone, so two calls
    give the same images as one call with the sum of their `num`.

    Args:
        steps, guidance_scale, sampler: default: those of the run's sample grids, or what suits the model.

    Raises:
        UserError: nothing usable is there, or `out` is a file.
    """
    if not prompt.strip():
        raise UserError("--prompt is empty; describe the image.")
    name = source if isinstance(source, str) else source.name
    check_sample_folder(out, name)
    first = next_index(out, seed)
    if first + num > MAX_INDEX:
        raise UserError(f"--out {out} holds an image numbered {first - 1} of seed {seed}; choose another folder.")
    enable_compilation_cache()
    warn_about_cpu_fallback()
    pipeline = Pipeline.load(
        source, clip_skip=clip_skip, max_token_chunks=max_token_chunks, step=step, quantization=model_quantization
    )
    warn_about_truncation(pipeline.base.text, [prompt, negative_prompt])
    sampling = pipeline.defaults.override(sampler, steps, guidance_scale)
    config = SamplingConfig(*sampling, resolution or pipeline.resolution, negative_prompt, height, width)
    metadata = {"prompt": prompt, "seed": seed, "model": name, "step": pipeline.step} | config.metadata()
    indices = range(first, first + num)
    paths, tiles = [], []
    for index, image in zip(indices, pipeline.generate(config, prompt, indices, seed), strict=True):
        path = out / f"{seed}-{index:03d}.png"
        write_png(path, image, metadata | {"index": index})
        paths.append(path)
        if len(tiles) < SHEET_TILES:
            tiles.append(shrink(np.asarray(image), TILE_SIDE))
    contact_sheet = out / CONTACT_SHEETS / f"{paths[0].stem}-to-{indices[-1]:03d}.png"
    labels = [path.stem for path in paths[: len(tiles)]]
    write_png(contact_sheet, image_grid(tiles, labels, min(SHEET_COLUMNS, len(tiles)), lines=1), metadata)
    guidance = f"guidance {sampling.guidance_scale:g}" if sampling.guidance_scale != 1 else "no guidance"
    return SampleResult(paths, contact_sheet, f"{sampling.sampler}, {pluralize(sampling.steps, 'step')}, {guidance}")


def next_index(out: Path, seed: int) -> int:
    """Returns the index after the highest of a seed's images in a folder; 0 where there are none or no folder."""
    pattern = re.compile(rf"{seed}-([0-9]{{3,9}})\.png")
    names = [path.name for path in out.iterdir()] if out.is_dir() else []
    return max((int(match[1]) + 1 for name in names if (match := pattern.fullmatch(name))), default=0)


def check_sample_folder(out: Path, source: str) -> None:
    """Raises UserError if a folder cannot be written, or is part of the run or model that is sampled."""
    check_writable(out, "--out")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder.")
    run = RunFolder(as_path(source))
    if run.config.exists():
        check_output(out, run.root, load_config(run.config))
    else:
        check_output_of_model(out, source)
