"""Folders as downloads: one file as it is, several in a zip that is made while it is sent."""

import os
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from jaxbooth.report.run_data import files_below
from jaxbooth.ui.roots import NotFound

CHUNK = 2**20  # bytes in memory at once
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


class Sink:
    """What a zip is written to: keeps bytes until they are taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, content: bytes) -> int:
        """Keeps bytes."""
        self._parts.append(bytes(content))
        return len(content)

    def flush(self) -> None:
        """Nothing waits elsewhere."""

    def take(self) -> bytes:
        """Returns what was written since the last time."""
        content = b"".join(self._parts)
        self._parts.clear()
        return content


class ZipResponse(StreamingResponse):
    """A zip that is sent; its files are closed at once when whoever loads it leaves."""

    def __init__(self, chunks: Generator[bytes], headers: Mapping[str, str]):
        super().__init__(chunks, media_type="application/zip", headers=headers)
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._chunks.close()


def download(folder: Path, name: str) -> Response:
    """Returns the content of a folder: a single file in it, or a zip. Symlinks are left out.

    Args:
        name: of the zip and of the folder in it.

    Raises:
        NotFound: it has no files.
    """
    files = files_in(folder)
    if not files:
        raise NotFound(str(folder))
    if len(files) == 1:
        return FileResponse(files[0], filename=files[0].name, media_type="application/octet-stream")
    return zip_response(((file, f"{name}/{file.relative_to(folder)}") for file in files), name)


def files_in(folder: Path) -> list[Path]:
    """Returns all files below a folder, in order; none of one that is missing or a symlink."""
    return sorted(files_below(folder)) if folder.is_dir() and not folder.is_symlink() else []


def zip_response(files: Iterable[tuple[Path, str]], name: str) -> Response:
    """Returns files as a zip.

    Args:
        files: each with its path in the zip.
    """
    answer = FileResponse("", filename=f"{name}.zip")  # writes the header for any name
    headers = {"content-disposition": answer.headers["content-disposition"]}
    return ZipResponse(zip_chunks(files), headers)


def zip_chunks(files: Iterable[tuple[Path, str]]) -> Generator[bytes]:
    """Yields the bytes of a zip; images and weights would not become smaller, so nothing is compressed."""
    sink = Sink()
    with ZipFile(sink, "w", ZIP_STORED) as archive:  # ty: ignore[no-matching-overload]
        for path, name in files:
            entry = ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            is_large = os.stat(path).st_size > 2**31
            with open(path, "rb") as source, archive.open(entry, "w", force_zip64=is_large) as file:
                while chunk := source.read(CHUNK):
                    file.write(chunk)
                    yield sink.take()
    yield sink.take()
