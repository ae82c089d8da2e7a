"""What weight files and model cards say about the training, out of a run's configuration."""

import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxbooth.base.model import BaseModel
from jaxbooth.config.prior import describe_terms
from jaxbooth.config.rates import peak_learning_rate
from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import TextConfig
from jaxbooth.data.class_images import open_all_class_images
from jaxbooth.errors import UserError
from jaxbooth.models.adapter_kinds import KINDS


def run_metadata(config: Config, trained: Iterable[str], step: int) -> dict[str, str]:
    """Returns the metadata of a weight file. Of a local base model it names the last part of the path.

    Args:
        trained: components that training changed.
    """
    lora = {
        "jaxbooth.lora_kind": config.lora.kind,
        "jaxbooth.lora_rank": str(config.lora.rank),
        "jaxbooth.lora_alpha": str(config.lora.alpha or config.lora.rank),
        "jaxbooth.lora_targets": config.lora_targets,
        "jaxbooth.lora_rslora": str(config.lora.rslora),
    }
    return {
        "jaxbooth.base_model": Path(config.model).name if Path(config.model).is_absolute() else config.model,
        "jaxbooth.instance_prompt": "; ".join(subject.instance_prompt for subject in config.subjects),
        "jaxbooth.class_prompt": "; ".join(subject.class_prompt or "" for subject in config.subjects),
        "jaxbooth.steps": str(step),
        "jaxbooth.learning_rate": str(peak_learning_rate(config)),
        "jaxbooth.prior": describe_terms(config.prior_terms),
        "jaxbooth.trained": ", ".join(trained),
    } | (lora if config.lora.rank else {})


def class_prompts(config: Config) -> tuple[str, ...]:
    """Returns the distinct class prompts of the subjects."""
    return tuple(dict.fromkeys(subject.class_prompt for subject in config.subjects if subject.class_prompt))


def describe_tags(text: TextConfig) -> str | None:
    """Returns what was done to the tags of captions, or None."""
    if not text.varies_tags:
        return None
    changes = ["shuffled"] if text.shuffle_tags else []
    if text.tag_dropout:
        changes.append(f"{text.tag_dropout:.0%} left out")
    kept = f", but the first {text.keep_tags}" if text.keep_tags else ""
    return f"tags {' and '.join(changes)}{kept}"


def training_settings(config: Config, base: BaseModel, step: int) -> dict[str, Any]:
    """Returns what a reader wants to know of the training, name -> value; None is left out."""
    train, lora, text, loss = config.train, config.lora, config.text, config.loss
    has_frozen_target = "class-images" in config.prior.distilled_methods
    extras = [name for name, used in (("rsLoRA", lora.rslora), (KINDS[lora.kind].title, lora.kind != "lora")) if used]
    return {
        "steps": step,
        "batch": f"{train.batch_size} instance + {config.prior_rows} prior",
        "optimizer": train.optimizer,
        "learning rate": None if text.is_textual_inversion else peak_learning_rate(config),
        "learning rate ratio of matrices B": lora.b_rate_ratio if lora.b_rate_ratio != 1 else None,
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
        "trigger word": text.trigger_word,
        "captions": describe_tags(text),
        "clip skip": text.clip_skip or None,
        "prior": describe_terms(config.prior_terms),
        "target of class images": "the base model's prediction" if has_frozen_target else None,
        "weighting": f"{loss.weighting} (gamma {loss.snr_gamma:g})" if loss.weighting == "min_snr" else loss.weighting,
        "EMA decay": train.ema_decay,
        "base model's revision": config.revision,
        "VAE": Path(config.vae).name if config.vae else None,
        "text encoder and VAE of": Path(config.components).name if config.components else None,
        "precision": base.dtype.name,
        "seed": config.seed,
        "jaxbooth": importlib.metadata.version("jaxbooth"),
    }


def prior_settings(config: Config, base: BaseModel) -> dict[str, Any]:
    """Returns where the class images come from, name -> value: how many the user gave, how the others were made."""
    prior = config.prior
    try:
        sets, _ = open_all_class_images(base, config.model, config.data, prior, config.subjects, config.run_dir)
        user_files = sum(len(classes.user_files) for classes in sets)
        generated = sum(classes.found for classes in sets) - user_files
    except UserError:  # the folder now belongs to a run with other settings
        user_files, generated = 0, 0
    sampling = {
        "generated by the base model before training": generated or config.data.num_class_images,
        "sampler": prior.sampler,
        "sampling steps": prior.steps,
        "guidance scale": prior.guidance_scale,
        "seed of the class images": prior.seed,
    }
    return ({"the trainer's own": user_files} if user_files else {}) | (sampling if generated or not user_files else {})
