"""DreamBooth for JAX: `train("demo")`, `Pipeline.load(path).sample(prompt)`; docs/library.md shows more."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.errors import RunFailure, UserError

if TYPE_CHECKING:
    from jaxbooth.pipeline import Pipeline
    from jaxbooth.runs.train import Result, train

__version__ = version("jaxbooth")
__all__ = ["Config", "Pipeline", "Result", "RunFailure", "UserError", "__version__", "load_config", "train"]


def __getattr__(name: str) -> Any:
    """Imports the heavy half on first use, so that `jaxbooth --help` stays quick."""
    if name == "Pipeline":
        from jaxbooth.pipeline import Pipeline

        return Pipeline
    if name in ("Result", "train"):
        from jaxbooth.runs import train as runs_train

        return getattr(runs_train, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    """Lists what is public, the half that is not imported yet included."""
    return list(__all__)
