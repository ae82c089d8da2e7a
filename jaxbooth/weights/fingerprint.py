"""What tells one set of weights from another without reading all of them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from jaxbooth.weights.diffusers_read import weight_files

SCHEDULER = Path("scheduler", "scheduler_config.json")
SPAN = 2**20  # bytes read from each end of a weight file


class Digest(Protocol):
    """What `hashlib` makes."""

    def update(self, data: bytes, /) -> None:
        """Takes in more bytes."""


def update_with_weights(digest: Digest, folder: Path, label: str = "") -> None:
    """Takes in names, sizes and both ends of a folder's weight files, which any training changes.

    Args:
        label: written before the names.
    """
    for name in weight_files(folder):
        path = folder / name
        digest.update(f"{label}{name}:{path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(SPAN))
            file.seek(max(0, path.stat().st_size - SPAN))
            digest.update(file.read())


def model_fingerprint(folder: Path, components: Sequence[str]) -> str:
    """Identifies a base model by its schedule, and by the sizes and both ends of its weight files.

    Any training changes it, as does another prediction type.
    """
    digest = hashlib.sha256((folder / SCHEDULER).read_bytes())
    for component in components:
        update_with_weights(digest, folder / component, f"{component}/")
    return digest.hexdigest()[:16]
