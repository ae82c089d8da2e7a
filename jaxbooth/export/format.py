"""What an export format is, and what is exported.

Each format is one module of this room with a subclass of `ExportFormat`, and one entry of `FORMATS` in
`jaxbooth.export.export`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.base.text_encoder import PLACEHOLDER_EMBEDDING
from jaxbooth.models.lora import lora_layers, merge_on_devices
from jaxbooth.params import AnyArray, Params, join
from jaxbooth.weights.diffusers_write import ExportDtype
from jaxbooth.weights.family import Family
from jaxbooth.weights.prepare import link_model


class ReadBack(NamedTuple):
    """A tensor of an export beside what it should be.

    Attributes:
        label: the file, and the tensor in it.
        found: as a reader has it; None: it is missing.
        expected: None: it should not be there.
        error: what float32 arithmetic may have changed, relative to the largest value; 0: nothing.
    """

    label: str
    found: np.ndarray | None
    expected: np.ndarray | None
    error: float = 0.0


class ExportFormat(ABC):
    """A kind of files that a trained model is exported as. Learned embeddings lie beside those of every format.

    Attributes:
        name: on the command line.
        help: what the command line says of it.
        is_whole_model: whether the export is used without the base model.
        has_configuration: whether the model's configuration is among the files, so that readers need not be told.
        introduction: how a model card says what the model is.
        hub_tags: of the model card, beside those that every model has.
        torch_packages: that `--verify` needs.
    """

    name: str
    help: str
    introduction: str
    is_whole_model: bool = False
    has_configuration: bool = False
    hub_tags: Sequence[str] = ()
    torch_packages: Sequence[str] = ("torch", "diffusers")

    def default_dtype(self, family: Family) -> ExportDtype:
        """Returns the dtype of the weights; "base" is that of the base model's files (float32 in a LoRA)."""
        return "base"

    def check(self, base: BaseModel) -> None:
        """Refuses a base model whose training has nothing that the format can hold.

        Raises:
            UserError: the message names the flag that is missing.
        """
        return

    @abstractmethod
    def write(self, export: "Export", folder: Path) -> None:
        """Writes the files into `folder`, which takes the name `export.out` once it is complete."""

    @abstractmethod
    def read_back(self, export: "Export") -> Iterator[ReadBack]:
        """Reads the files at `export.out` as their users do, a tensor at a time.

        Raises:
            UserError: a file is missing or damaged, or its tensors are not those of the model.
        """

    def check_configuration(self, export: "Export") -> list[str]:
        """Reads back what is no tensor, and returns what was found, in sentences.

        Raises:
            RunFailure: it is not what it should be.
        """
        return []

    def torch_pipeline(self, export: "Export", scratch: Path) -> Any:
        """Opens the export in diffusers as its users do; without a whole model, opens the base model.

        Args:
            scratch: an empty folder.
        """
        import diffusers

        folder = link_model(export.base.folder, export.base.components, scratch)
        return diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)

    def load_in_torch(self, pipe: Any, export: "Export") -> None:
        """Adds the export to a pipeline of the base model in float32; nothing for a whole model."""
        return

    def written_adapters(self, export: "Export") -> dict[str, dict[str, AnyArray]]:
        """Returns component -> adapters as they were written, of a format that has any."""
        return {}

    def weights_file(self, name: str) -> str | None:
        """Returns the file that readers have to be told, of an export of that name."""
        return None

    def notes(self, export: "Export") -> list[str]:
        """Returns what users must tell another program, or must not give it: sentences without their full stop."""
        return []

    def loading_code(self, repo: str, family: Family, tokens: Sequence[str], files: Sequence[str]) -> list[str]:
        """Returns the lines of Python that add the export in a Hub repository to `pipe`; none for a whole model.

        Args:
            tokens: placeholder tokens that were learned.
            files: names of the export's files.
        """
        return []


@dataclass(frozen=True)
class Export:
    """A trained model on its way into files.

    Attributes:
        base: with the run's adapters and placeholder tokens.
        trained: component -> trained parameters.
        out: the folder of the export; files are named after it.
        dtype: of the weights.
        metadata: of the weight files, beside what their format asks for.
    """

    base: BaseModel
    trained: dict[str, Params]
    mesh: Mesh
    out: Path
    format: ExportFormat
    dtype: ExportDtype
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def tokens(self) -> list[str]:
        """The placeholder tokens that were learned."""
        return [token.text for token in self.base.text.placeholder_tokens]

    def weights(self) -> dict[str, Params]:
        """Returns component -> trained parameters or adapters, less learned embeddings, of components that have any."""
        trained = {
            component: {name: value for name, value in params.items() if name != PLACEHOLDER_EMBEDDING}
            for component, params in self.trained.items()
        }
        return {component: params for component, params in trained.items() if params}

    def merged(self) -> dict[str, Params]:
        """Returns component -> its whole parameters, of the components that training changed; adapters are merged."""
        trained = self.weights()
        adapted = tuple(component for component, params in trained.items() if lora_layers(params))
        kernels = load_params(self.base, self.mesh, adapted, adapted) if adapted else {}
        return merge_on_devices(join(kernels, trained), self.base.lora)
