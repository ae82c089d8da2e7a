"""Opens a run at a step, or a plain model with its learned embeddings, as a pipeline."""

from dataclasses import fields
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel, Pipeline, SamplingDefaults, load_params
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.base.trainable import fully_trained, trained_shapes
from jaxbooth.config.run_config import Config, flag, load_config
from jaxbooth.errors import UserError
from jaxbooth.models.lora import merge_on_devices
from jaxbooth.params import Params, join
from jaxbooth.runs.folder import RunFolder, confirm_base, open_run, read_base, refuse_missing, run_mesh, trained_params
from jaxbooth.sharding import make_mesh
from jaxbooth.storage.paths import shown
from jaxbooth.storage.remote import place
from jaxbooth.storage.text import read_json
from jaxbooth.weights.embeddings import read_embeddings
from jaxbooth.weights.resolve import Source, resolve_model

XL_GUIDANCE = 5.0
TURBO_STEPS = 4


def load_run(run: RunFolder, config: Config, base: BaseModel, mesh: Mesh, step: int | None = None) -> Pipeline:
    """Loads a run at a step (default: its newest): adapters merged in float32, learned embeddings beside the table."""
    confirm_base(run, base)
    trained, step = trained_params(run, config, base, mesh, step)
    whole = fully_trained(base, trained_shapes(base, config))
    params = join(load_params(base, mesh, components=tuple(set(base.components) - set(whole))), trained)
    # Rounded to bfloat16, a kernel would swallow most of a small change; there the adapters stay beside it.
    if base.dtype == jnp.float32:
        params = merge_on_devices(params, base.lora)
    return Pipeline(base, params, mesh, config.resolution, step, validation_sampling(config))


def validation_sampling(config: Config) -> SamplingDefaults:
    """Returns how a run's sample grids are made."""
    chosen = config.validation
    return SamplingDefaults(chosen.sampler, chosen.steps, chosen.guidance_scale)


def default_sampling(name: str, base: BaseModel) -> SamplingDefaults:
    """Returns how a plain model is sampled: the embedded one as its runs are, others with their pipelines' guidance."""
    if name == "demo":
        return validation_sampling(load_config("demo"))
    if is_turbo(base):
        return SamplingDefaults("euler_ancestral", TURBO_STEPS, 1.0)
    return SamplingDefaults(guidance_scale=XL_GUIDANCE) if base.text.is_xl else SamplingDefaults()


def is_turbo(base: BaseModel) -> bool:
    """Whether a model was distilled to a few steps without guidance, as SD Turbo and SDXL Turbo were.

    Those predict epsilon, and come with an Euler scheduler at trailing timesteps.
    """
    schedule, written = base.schedule, read_json(base.folder / "scheduler" / "scheduler_config.json")
    is_euler = written.get("_class_name") in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
    return is_euler and schedule.timestep_spacing == "trailing" and schedule.prediction_type == "epsilon"


def load_embeddings(base: BaseModel) -> tuple[BaseModel, dict[str, Params]]:
    """Adds the words whose embeddings lie in a model folder, where an export put them; returns their rows too.

    Raises:
        UserError: a file is damaged, or its embeddings are not as wide as the text encoders are.
    """
    words = read_embeddings(base.folder)
    rows: dict[str, list[np.ndarray]] = {}
    for word, towers in words.items():
        widths = {tower.name: tower.config.hidden_size for tower in base.text.encoders}
        vectors = len(next(iter(towers.values())))
        if {name: table.shape for name, table in towers.items()} != {name: (vectors, widths[name]) for name in widths}:
            raise UserError(
                f"{base.folder}: the learned embeddings of {shown(word)} do not fit the text encoders; "
                "they must be of this model."
            )
        base = base.with_text(base.text.add_placeholder_tokens((word,), vectors))
        for name, table in towers.items():
            rows.setdefault(name, []).append(table)
    return base, {name: {PLACEHOLDER_EMBEDDING: jnp.asarray(np.concatenate(tables))} for name, tables in rows.items()}


def load_pipeline(
    path: str | Path | Source,
    dtype: str | None,
    mesh: Mesh | None,
    clip_skip: int = 0,
    max_token_chunks: int = 1,
    step: int | None = None,
) -> Pipeline:
    """Opens a run folder at a step (default: its newest checkpoint), or a model folder, file or Hub id as it is.

    Raises:
        UserError: nothing usable is there, or a run is asked for with settings that are its own affair.
    """
    source = path if isinstance(path, Source) else Source(str(path))
    refuse_missing(source.name)
    if not RunFolder(place(source.name)).config.exists():
        if step is not None:
            raise UserError(f"--step {step} is about the checkpoints of a run, and {source.name} is not a run folder.")
        base = BaseModel.read(resolve_model(source), dtype or "auto", clip_skip, max_token_chunks)
        base, learned = load_embeddings(base)
        mesh = mesh or make_mesh()
        defaults = default_sampling(source.name, base)
        return Pipeline(base, join(load_params(base, mesh), learned), mesh, base.native_resolution, 0, defaults)
    set_here = [field.name for field in fields(source)[1:] if getattr(source, field.name)]
    set_here += [
        name for name, given in (("clip_skip", clip_skip), ("max_token_chunks", max_token_chunks > 1)) if given
    ]
    if set_here:
        raise UserError(f"{flag(set_here[0])} is about a plain model; {source.name} is a run, which has its own.")
    run, config = open_run(source.name)
    return load_run(run, config, read_base(config, dtype), mesh or run_mesh(config), step)
