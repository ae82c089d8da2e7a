"""What a new run is based on: a shipped configuration, another run, or a model alone."""

from dataclasses import dataclass

from jaxbooth.assets import shipped_configs
from jaxbooth.config.load import load_config
from jaxbooth.config.run_config import Config
from jaxbooth.ui.roots import NotFound, Roots

DEFAULT = "config:sd15-lora"
OTHER = "other"


@dataclass(frozen=True)
class Start:
    """What a new run is based on.

    Attributes:
        choice: `config:NAME`, `run:NAME`, `model:PATH` or `other`.
        config: the configuration.
        source: what the command line names for it; None: nothing, it has the defaults.
        model: the base model, where that is chosen by itself.
    """

    choice: str
    config: Config
    source: str | None
    model: str | None

    @property
    def trained(self) -> str:
        """What is trained unless something else is chosen; a model alone gets a LoRA."""
        if self.config.text.is_textual_inversion:
            return "tokens"
        return "lora" if self.config.lora.rank or self.source is None else "whole"


def find_start(choice: str, typed: str, roots: Roots) -> Start:
    """Returns what a choice of the form means.

    Args:
        typed: the model of `other`.

    Raises:
        NotFound: it names a run or a folder that is not there.
    """
    choice = choice or DEFAULT
    kind, _, name = choice.partition(":")
    if kind == "config":
        return shipped_start(choice, name)
    if kind == "run":
        folder = roots.run(name)
        return Start(choice, load_config(folder.config), str(folder.config), None)
    if kind == "model":
        return Start(choice, Config(), None, str(roots.inside(name)))
    return Start(OTHER, Config(), None, typed or None)


def shipped_start(choice: str, name: str) -> Start:
    """Returns the start from a shipped configuration.

    Raises:
        NotFound: there is none of that name.
    """
    file = shipped_configs() / f"{name}.yaml"
    if name not in [path.stem for path in shipped_configs().glob("*.yaml")]:  # not any file that it may lead to
        raise NotFound(name)
    return Start(choice, load_config(file), name, None)
