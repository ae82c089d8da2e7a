"""DreamBooth for JAX: `train(config)`, `Pipeline.load(path).sample(prompt)`."""

from typing import TYPE_CHECKING, Any

from jaxbooth.config import Config, load_config
from jaxbooth.errors import RunFailure, UserError

if TYPE_CHECKING:
    from jaxbooth.pipeline import Pipeline
    from jaxbooth.training.run import train

__all__ = ["Config", "Pipeline", "RunFailure", "UserError", "load_config", "train"]


def __getattr__(name: str) -> Any:
    """Imports the heavy half on first use, so that `jaxbooth --help` stays quick."""
    if name == "Pipeline":
        from jaxbooth.pipeline import Pipeline

        return Pipeline
    if name == "train":
        from jaxbooth.training.run import train

        return train
    raise AttributeError(name)
