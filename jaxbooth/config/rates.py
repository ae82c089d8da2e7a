"""Learning rates of a run: as they are set, or as they follow from what is trained."""

from typing import Literal

from jaxbooth.config.run_config import Config

Group = Literal["denoiser", "text", "tokens"]
DEFAULT_RATE = {"prodigy": 1.0}  # optimizer -> its own default


def default_learning_rate(config: Config, group: Group = "denoiser") -> float:
    """Returns the learning rate of a group where none is set: by the optimizer, and by what is trained."""
    rates = config.default_rates
    trained = rates.tokens if group == "tokens" else rates.lora if config.lora.rank else rates.full
    return DEFAULT_RATE.get(config.train.optimizer, trained)


def peak_learning_rate(config: Config, group: Group = "denoiser") -> float:
    """Returns a group's learning rate: as set, or the default; the text encoders' is the UNet's unless it is set."""
    if group == "tokens":
        return config.text.token_learning_rate or default_learning_rate(config, "tokens")
    unet = config.train.learning_rate or default_learning_rate(config)
    return (config.text.learning_rate or unet) if group == "text" else unet


def token_steps(config: Config) -> int:
    """Returns the steps at the start that belong to the learned embeddings alone."""
    text = config.text
    return (
        round(config.train.steps * text.token_share)
        if text.placeholder_tokens and text.token_training == "pivotal"
        else 0
    )
