"""The short commands as library functions."""

from pathlib import Path

from jaxbooth.devices import enable_compilation_cache, warn_about_cpu_fallback
from jaxbooth.diffusion.samplers import SamplerName
from jaxbooth.errors import UserError
from jaxbooth.files import write_png
from jaxbooth.pipeline import Base, Pipeline, warn_about_lost_text
from jaxbooth.run_folder import open_run, run_mesh, trained_params
from jaxbooth.sampling import Settings, draw
from jaxbooth.weights.pipeline_dir import ExportDtype, export_folder
from jaxbooth.weights.resolve import resolve_model


def sample(
    source: str,
    prompt: str,
    out: Path,
    negative_prompt: str = "",
    num: int = 4,
    seed: int = 0,
    steps: int = 25,
    guidance_scale: float = 7.5,
    sampler: SamplerName = "dpmpp_2m",
    resolution: int | None = None,
) -> Path:
    """Draws pictures 0 .. num-1 and saves each as `<seed>-<number>.png`; returns the folder.

    Raises:
        UserError: a picture of that name is there already.
    """
    if not prompt.strip():
        raise UserError("--prompt is empty; say what to draw.")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder.")
    paths = [out / f"{seed}-{index:03d}.png" for index in range(num)]
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists already; choose another --out or --seed.")
    enable_compilation_cache()
    warn_about_cpu_fallback()
    pipeline = Pipeline.load(source)
    warn_about_lost_text(pipeline.base, [prompt, negative_prompt])
    settings = Settings(sampler, steps, guidance_scale, resolution or pipeline.resolution, negative_prompt)
    images = draw(pipeline, settings, prompt, num, seed)
    facts = {"prompt": prompt, "seed": seed, "model": source, "step": pipeline.step} | settings.facts()
    for index, (path, image) in enumerate(zip(paths, images, strict=True)):
        write_png(path, image, facts | {"index": index})
    return out


def export(run_dir: Path, out: Path, dtype: ExportDtype = "base") -> int:
    """Writes a run's newest checkpoint as a diffusers folder; returns its step."""
    run, config = open_run(run_dir)
    base = Base.read(resolve_model(config.model))
    params, step = trained_params(run, config, base, run_mesh(config))
    export_folder(base.folder, params, out, dtype)
    return step
