"""DreamBooth for JAX: `train("demo")`, `Pipeline.load(path).sample(prompt)`; docs/library.md shows more."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.errors import RunFailure, UserError

if TYPE_CHECKING:
    from jaxbooth.pipeline import Pipeline
    from jaxbooth.runs.train import train
    from jaxbooth.runs.training_run import Result

__version__ = version("jaxbooth")
__all__ = ["Config", "Pipeline", "Result", "RunFailure", "UserError", "__version__", "load_config", "train"]


def __getattr__(name: str) -> Any:
    """Imports the heavy half on first use, so that `jaxbooth --help` stays quick."""
    if name == "Pipeline":
        from jaxbooth.pipeline import Pipeline

        return Pipeline
    if name == "Result":
        from jaxbooth.runs.training_run import Result

        return Result
    if name == "train":
        from jaxbooth.runs.train import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    """Lists what is public, the half that is not imported yet included."""
    return list(__all__)
