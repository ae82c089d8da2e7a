"""Bytes of image files, to be damaged."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from jaxbooth.data.images import load_image
from jaxbooth.errors import UserError

LYING = 6  # EXIF orientation: stored lying, shown standing


EXIF_BODY = b"Exif\0\0"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        load_image(path)
    assert len(str(raised.value)) <= 500
    return str(raised.value)


def exif(orientation: int = LYING) -> Image.Exif:
    content = Image.Exif()
    content[0x0112] = orientation
    content[0x010F] = "a camera"
    return content


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(path: Path, *chunks: bytes) -> None:
    """Puts chunks behind a PNG's header."""
    content = path.read_bytes()
    path.write_bytes(content[:33] + b"".join(chunks) + content[33:])


def with_segment(path: Path, marker: int, data: bytes) -> None:
    """Puts a segment behind a JPEG's first two bytes."""
    content = path.read_bytes()
    path.write_bytes(content[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + content[2:])


def texts(size: int) -> list[bytes]:
    data = zlib.compress(bytes(size))
    return [chunk(b"zTXt", b"a\0\0" + data), chunk(b"iTXt", b"a\0\1\0\0\0" + data), chunk(b"iCCP", b"a\0\0" + data)]
