"""What a run's model card says: the facts, out of its configuration and its folder."""

import importlib.metadata
from pathlib import Path
from typing import Any

from jaxbooth.base.model import BaseModel
from jaxbooth.config.run_config import Config
from jaxbooth.data.class_images import open_all_class_images
from jaxbooth.errors import UserError
from jaxbooth.export.export import PEFT_FILE
from jaxbooth.export.reader_notes import end_token_line, reader_notes
from jaxbooth.export.upload import CardContent, model_card
from jaxbooth.runs.folder import RunFolder
from jaxbooth.training.optimizer import peak_learning_rate
from jaxbooth.weights.diffusers_write import ExportDtype, ExportFormat
from jaxbooth.weights.embeddings import embedding_files

SAMPLES_FILE = "samples.png"


def run_model_card(
    run: RunFolder,
    config: Config,
    base: BaseModel,
    repo: str,
    format: ExportFormat,
    dtype: ExportDtype,
    step: int,
    license: str | None,
    out: Path,
) -> str:
    """Returns the model card of an export, and puts the run's newest sample grid beside the weights.

    Args:
        repo: "owner/name" that the export will be pushed to.
        step: of the exported checkpoint; its grid is taken, or else the newest one.
        license: a Hub licence identifier.
        out: the export's folder.
    """
    grid = newest_grid(run, step)
    if grid:
        (out / SAMPLES_FILE).write_bytes(grid.read_bytes())
    weights = {"lora": PEFT_FILE, "single-file": f"{out.name}.safetensors"}
    has_prior = config.train.prior_weight > 0
    card = CardContent(
        repo=repo,
        base_model=config.model,
        format=format,
        family=base.family,
        instance_prompts=tuple(subject.instance_prompt for subject in config.subjects),
        class_prompts=class_prompts(config) if has_prior else (),
        settings=settings(config, base, step),
        prior=prior_settings(config, base) if has_prior else {},
        license=license,
        image=SAMPLES_FILE if grid else None,
        weights=weights.get(format),
        embeddings=embedding_files(config.text.placeholder_tokens),
        notes=tuple(reader_notes(config, base, format, dtype)),
        end_token_line=end_token_line(base) if base.text.eos_token_id_to_set is not None else None,
    )
    return model_card(card)


def newest_grid(run: RunFolder, step: int) -> Path | None:
    """Returns the sample grid of a step, or the newest one that there is."""
    grids = sorted(run.samples(step).parent.glob("step_*.png"))
    return run.samples(step) if run.samples(step) in grids else next(reversed(grids), None)


def class_prompts(config: Config) -> tuple[str, ...]:
    """Returns the distinct class prompts of the subjects."""
    return tuple(dict.fromkeys(subject.class_prompt for subject in config.subjects if subject.class_prompt))


def settings(config: Config, base: BaseModel, step: int) -> dict[str, Any]:
    """Returns what a reader wants to know of the training, name -> value; None is left out."""
    train, lora, text, loss = config.train, config.lora, config.text, config.loss
    extras = [name for name, used in (("rsLoRA", lora.rslora), ("DoRA", lora.dora)) if used]
    return {
        "steps": step,
        "batch": f"{train.batch_size} instance + {config.prior_rows} prior",
        "optimizer": train.optimizer,
        "learning rate": peak_learning_rate(config) if text.token_training != "textual-inversion" else None,
        "learning rate of the text encoder": peak_learning_rate(config, "text") if train.text_encoder else None,
        "learning rate of placeholder tokens": peak_learning_rate(config, "tokens")
        if text.placeholder_tokens
        else None,
        "resolution": config.resolution,
        "LoRA": f"rank {lora.rank}, alpha {lora.alpha or lora.rank:g}" if lora.rank else None,
        "LoRA targets": config.lora_targets if lora.rank else None,
        "LoRA variant": ", ".join(extras) or None,
        "text encoder": "trained" if train.text_encoder else "frozen",
        "placeholder tokens": ", ".join(text.placeholder_tokens) or None,
        "vectors for each placeholder token": text.vectors_per_token if text.placeholder_tokens else None,
        "clip skip": text.clip_skip or None,
        "prior weight": train.prior_weight,
        "prior target": "the base model's prediction" if loss.prior_target == "frozen" else None,
        "weighting": f"{loss.weighting} (gamma {loss.snr_gamma:g})" if loss.weighting == "min_snr" else loss.weighting,
        "EMA decay": train.ema_decay,
        "base model's revision": config.revision,
        "VAE": Path(config.vae).name if config.vae else None,
        "precision": base.dtype.name,
        "seed": config.seed,
        "jaxbooth": importlib.metadata.version("jaxbooth"),
    }


def prior_settings(config: Config, base: BaseModel) -> dict[str, Any]:
    """Returns what the class pictures are, name -> value: how many the model drew, and how, and how many it did not."""
    asked = config.prior
    try:
        sets, _ = open_all_class_images(config, base)
        own = sum(len(classes.user_files) for classes in sets)
        made = sum(classes.found for classes in sets) - own
    except UserError:  # the folder now belongs to a run with other settings
        own, made = 0, 0
    drawn = {
        "drawn by the base model before training": made or config.data.num_class_images,
        "sampler": asked.sampler,
        "sampling steps": asked.steps,
        "guidance scale": asked.guidance_scale,
        "seed of the pictures": asked.seed,
    }
    return ({"the trainer's own": own} if own else {}) | (drawn if made or not own else {})
