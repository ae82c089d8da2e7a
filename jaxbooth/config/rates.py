"""Learning rates of a run: as they are set, or as they follow from what is trained."""

from typing import Literal, NamedTuple

from jaxbooth.config.run_config import Config

Group = Literal["denoiser", "text", "tokens"]
DEFAULT_RATE = {"prodigy": 1.0}  # optimizer -> its own default


class LearningRates(NamedTuple):
    """Peak learning rates of the groups of parameters, and when each group is trained.

    Attributes:
        token_steps: steps at the start that belong to the placeholder tokens alone.
        tokens_only: nothing but placeholder tokens is trained.
        has_groups: not everything is trained at one rate.
        b_ratio: what multiplies the rate of a LoRA's matrices B, in whichever group they are.
    """

    denoiser: float
    text: float
    tokens: float
    token_steps: int = 0
    tokens_only: bool = False
    has_groups: bool = False
    b_ratio: float = 1.0

    def peak(self, group: Group) -> float:
        """Returns the peak rate of a group."""
        match group:
            case "denoiser":
                return self.denoiser
            case "text":
                return self.text
            case "tokens":
                return self.tokens


def learning_rates(config: Config) -> LearningRates:
    """Returns the learning rates of a run."""
    text = config.text
    return LearningRates(
        denoiser=peak_learning_rate(config, "denoiser"),
        text=peak_learning_rate(config, "text"),
        tokens=peak_learning_rate(config, "tokens"),
        token_steps=token_steps(config),
        tokens_only=text.is_textual_inversion,
        has_groups=text.learning_rate is not None or bool(text.placeholder_tokens),
        b_ratio=config.lora.b_rate_ratio,
    )


def default_learning_rate(config: Config, group: Group = "denoiser") -> float:
    """Returns the learning rate of a group where none is set: by the optimizer, and by what is trained."""
    rates = config.default_rates
    trained = rates.tokens if group == "tokens" else rates.lora if config.lora.rank else rates.full
    return DEFAULT_RATE.get(config.train.optimizer, trained)


def peak_learning_rate(config: Config, group: Group = "denoiser") -> float:
    """Returns a group's learning rate: as set, or the default; for text encoders, the denoiser's unless it is set."""
    if group == "tokens":
        return config.text.token_learning_rate or default_learning_rate(config, "tokens")
    denoiser = config.train.learning_rate or default_learning_rate(config)
    return (config.text.learning_rate or denoiser) if group == "text" else denoiser


def token_steps(config: Config) -> int:
    """Returns the steps at the start that belong to the placeholder tokens alone."""
    text = config.text
    if not text.placeholder_tokens or text.token_training != "pivotal":
        return 0
    return round(config.train.steps * text.token_share)
