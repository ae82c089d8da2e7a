"""Requests for images of a run that trains: files that other programs leave in its folder, and that it answers there.

`RUN/sample_requests/ID.json` asks, `ID.png` is the answer, and `ID.error` is a sentence that says why there is none.
"""

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from annotated_types import Ge, Le, Len
from pydantic import ConfigDict, Strict, TypeAdapter, ValidationError

from jaxbooth.config.limits import MAX_PROMPT, Seed
from jaxbooth.data.image_grid import image_grid
from jaxbooth.errors import UserError
from jaxbooth.storage.files import write_json, write_png, write_text
from jaxbooth.storage.text import read_json

FOLDER = "sample_requests"  # in a run folder
MAX_IMAGES = 16  # of a request
MAX_WAITING = 64  # requests that are looked at; nobody waits for more
ID = re.compile(r"[0-9A-Za-z-]{1,64}")
REQUEST, ANSWER, ERROR = ".json", ".png", ".error"


@dataclass(frozen=True)
class SampleRequest:
    """What is asked for.

    Attributes:
        seed: of the noise; image i depends on it and on i alone.
        num: images.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    prompt: Annotated[str, Len(1, MAX_PROMPT)]
    seed: Annotated[Seed, Strict()] = 0
    num: Annotated[int, Strict(), Ge(1), Le(MAX_IMAGES)] = 1


ADAPTER = TypeAdapter(SampleRequest)


@dataclass(frozen=True)
class RequestFiles:
    """The files of one request."""

    folder: Path
    id: str

    @classmethod
    def of(cls, run: Path, id: str) -> Self:
        """Returns the files of a request to a run."""
        return cls(run / FOLDER, id)

    @property
    def request(self) -> Path:
        """What is asked for."""
        return self.folder / (self.id + REQUEST)

    @property
    def answer(self) -> Path:
        """The images, in one row, with what they are in the text chunks."""
        return self.folder / (self.id + ANSWER)

    @property
    def error(self) -> Path:
        """Why there are no images, in a sentence."""
        return self.folder / (self.id + ERROR)

    def read(self) -> SampleRequest:
        """Reads the request.

        Raises:
            UserError: it is none.
        """
        try:
            return ADAPTER.validate_python(read_json(self.request, "write it again"))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            key = ".".join(map(str, first["loc"])) or "request"
            raise UserError(f"{self.request.name}: {key} is not valid ({first['msg'].lower()}).") from None

    def write_images(self, images: np.ndarray, request: SampleRequest, facts: dict[str, object]) -> None:
        """Writes the answer, which is laid out as sample grids are.

        Args:
            images: (n, H, W, 3) uint8.
            facts: further text chunks.
        """
        grid = image_grid(list(images), [request.prompt] * len(images), len(images))
        write_png(self.answer, grid, {"prompts": json.dumps([request.prompt]), "seed": request.seed, **facts})

    def write_error(self, sentence: str) -> None:
        """Writes why there are no images."""
        write_text(self.error, sentence)


def ask(run: Path, request: SampleRequest) -> RequestFiles:
    """Leaves a request in a run folder."""
    files = RequestFiles.of(run, str(time.time_ns()))
    write_json(files.request, asdict(request))
    return files


def waiting_requests(run: Path) -> list[RequestFiles]:
    """Returns the requests that have no answer yet, the first ones first. Costs one look at a folder."""
    try:
        names = set(os.listdir(run / FOLDER))
    except OSError:
        return []
    ids = sorted(name.removesuffix(REQUEST) for name in names if name.endswith(REQUEST))
    waiting = [id for id in ids if ID.fullmatch(id) and not {id + ANSWER, id + ERROR} & names]
    return [RequestFiles.of(run, id) for id in waiting[:MAX_WAITING]]


def request_ids(run: Path) -> Sequence[str]:
    """Returns the names of all requests, the newest first."""
    try:
        names = os.listdir(run / FOLDER)
    except OSError:
        return []
    ids = {name.rpartition(".")[0] for name in names if name.endswith((REQUEST, ANSWER, ERROR))}
    return sorted(filter(ID.fullmatch, ids), reverse=True)
