"""Options that are set and would have no effect: none is accepted and ignored."""

from collections.abc import Iterator

from jaxbooth.config.held_out import VALIDATION_LOSS
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag, flatten

# key that does nothing on its own -> key that it needs
REQUIRED_KEYS = {
    "text.learning_rate": "train.text_encoder",
    "loss.outside_mask": "data.masks",
    "lora.alpha": "lora.rank",
    "lora.rslora": "lora.rank",
    "lora.kind": "lora.rank",
    "lora.b_rate_ratio": "lora.rank",
    "lora.targets": "lora.rank",
    "lora.init": "lora.rank",
    "text.vectors_per_token": "text.placeholder_tokens",
    "text.initializer_token": "text.placeholder_tokens",
    "text.token_learning_rate": "text.placeholder_tokens",
    "text.token_training": "text.placeholder_tokens",
    "evaluation.num_prompts": "evaluation.every",
    "evaluation.images_per_prompt": "evaluation.every",
    "evaluation.num_class_images": "evaluation.every",
    "evaluation.clip": "evaluation.every",
    "evaluation.dino": "evaluation.every",
    "evaluation.patience": "evaluation.keep_best",
}
# key -> what the message says instead of "needs --other-key"
REQUIRED_KEY_MESSAGES = {
    "text.learning_rate": "is the rate of the text encoder, which is frozen; set --train.text-encoder",
    "lora.init": "needs --lora.rank, that of the file or a higher one",
    "evaluation.patience": "needs --evaluation.keep-best, the metric to watch",
}
# key -> another key and the value that it must have
REQUIRED_VALUES = {
    "text.token_share": ("text.token_training", "pivotal"),
    "prior.outside_mask_weight": ("loss.outside_mask", "frozen"),
    "loss.huber_c": ("loss.loss_type", "huber"),
    "loss.timestep_mean": ("loss.timestep_sampling", "logit_normal"),
    "loss.timestep_std": ("loss.timestep_sampling", "logit_normal"),
    "loss.mode_scale": ("loss.timestep_sampling", "mode"),
    "data.random_crops": ("data.crop", "random"),
    "lora.factor": ("lora.kind", "lokr"),
}
TAG_KEYS = ("text.keep_tags", "text.caption_variants")
# optimizer -> keys that it does not use
UNUSED_BY_OPTIMIZER = {
    "adafactor": ("train.b1", "train.b2", "train.eps", "train.mu_dtype"),
    "lion": ("train.eps",),
    "prodigy": ("train.mu_dtype",),
    "schedule_free_adamw": ("train.mu_dtype",),
}


def ineffective_options(config: Config) -> Iterator[str]:
    """Yields a message for every option that is set and has no effect."""
    values, changed = flatten(config), changed_keys(config)
    for key, needed in REQUIRED_KEYS.items():
        if key in changed and not values[needed]:
            yield f"{flag(key)} {REQUIRED_KEY_MESSAGES.get(key, f'needs {flag(needed)}')}."
    for key, (other, value) in REQUIRED_VALUES.items():
        if key in changed and values[other] != value:
            yield f"{flag(key)} only acts with {flag(other)} {value}."
    for key in TAG_KEYS:
        if key in changed and not config.text.varies_tags:
            yield f"{flag(key)} only acts with --text.shuffle-tags or --text.tag-dropout."
    if config.prior.full_precision and config.model_quantization == "none" and not config.fit:
        yield "--prior.full-precision only acts with --model-quantization."
    if config.evaluation.keep_best not in (None, VALIDATION_LOSS) and not config.evaluation.every:
        yield "--evaluation.keep-best needs --evaluation.every."
    if "loss.snr_gamma" in changed and "min_snr" not in (config.loss.weighting, config.prior.weighting):
        yield "--loss.snr-gamma only acts with --loss.weighting min_snr."
    for key in UNUSED_BY_OPTIMIZER.get(config.train.optimizer, ()):
        if key in changed:
            yield f"{flag(key)} does nothing with --train.optimizer {config.train.optimizer}; leave it out."


def changed_keys(config: Config) -> list[str]:
    """Returns the keys that are not at their defaults."""
    defaults = flatten(Config())
    return [key for key, value in flatten(config).items() if value != defaults[key]]
