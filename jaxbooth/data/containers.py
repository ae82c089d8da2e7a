"""Image files without their metadata: what is left when text, EXIF, XMP or a color profile keeps one from opening.

References: PNG, https://www.w3.org/TR/png-3/; JPEG, ITU-T T.81 annex B; TIFF 6.0 section 2; HEIF and AVIF, ISO/IEC
23008-12 and 14496-12 (boxes `meta`, `iinf`, `infe`).
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import IO

from PIL import Image

MAX_REPAIRED = 2**29  # bytes of the largest file that is looked into
MAX_TEXT = 2**20  # bytes of metadata in one part that is kept
PNG = b"\x89PNG\r\n\x1a\n"
PNG_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT"}
EXIF, XMP, ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
JFIF_BYTES, ADOBE_BYTES = 14, 12  # the shortest such segment, which say how the colors are coded
TIFF_METADATA = {
    270,
    271,
    272,
    282,
    283,
    296,
    305,
    306,
    315,
    316,
    700,
    33432,
    33723,
    34377,
    34665,
    34675,
    34853,
    37724,
    40965,
}
TIFF_UNUSED = 65_000  # a tag that nobody reads; it is private by the standard


def without_metadata(content: bytes) -> bytes | None:
    """Returns an image file without the metadata that could keep it from opening, or None for other formats.

    Orientation and color profile stay where they are sound.
    """
    if len(content) > MAX_REPAIRED:
        return None
    try:
        if content.startswith(PNG):
            return b"".join([PNG, *png_chunks_to_keep(content)])
        if content.startswith(b"\xff\xd8\xff"):
            return b"".join(jpeg_segments_to_keep(content))
        if content[:4] in (b"II*\0", b"MM\0*"):
            return strip_tiff(content)
        if content[4:8] == b"ftyp":
            return strip_heif(content)
    except (struct.error, IndexError):  # the pixels' own part is damaged
        pass
    return None


def png_chunks_to_keep(content: bytes) -> Iterator[bytes]:
    """Yields the chunks of a PNG that are pixels, and the sound ones that say how to show them."""
    start = len(PNG)
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        kind, end = content[start + 4 : start + 8], start + 12 + length
        if kind in PNG_PIXELS or is_sound_chunk(kind, content[start + 4 : end]):
            yield content[start:end]
        start = end


def png_metadata_follows_pixels(file: IO[bytes]) -> bool:
    """Whether a file is a PNG with metadata such as EXIF behind its pixels, which its header does not show."""
    file.seek(0)
    if file.read(len(PNG)) != PNG:
        return False
    seen_pixels = False
    while head := file.read(8):
        length, chunk_type = struct.unpack(">I4s", head)
        seen_pixels = seen_pixels or chunk_type == b"IDAT"
        if seen_pixels and chunk_type not in PNG_PIXELS:
            return True
        file.seek(length + 4, 1)
    return False


def is_sound_chunk(kind: bytes, chunk: bytes) -> bool:
    """Whether a PNG chunk (type, data and checksum) is EXIF, XMP or a color profile that can be read."""
    data = chunk[4:-4]
    if struct.pack(">I", zlib.crc32(chunk[:-4])) != chunk[-4:]:
        return False
    if kind == b"eXIf":
        return is_sound_exif(data)
    if kind == b"iTXt":
        return data.startswith(b"XML:com.adobe.xmp\0\0\0") and len(data) < MAX_TEXT
    _, end, profile = data.partition(b"\0")
    return kind == b"iCCP" and bool(end) and profile[:1] == b"\0" and inflates(profile[1:])


def inflates(data: bytes) -> bool:
    """Whether compressed data is whole, and not too large."""
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(data, MAX_TEXT)
    except zlib.error:
        return False
    return inflater.eof


def is_sound_exif(data: bytes) -> bool:
    """Whether EXIF, without its head, can be read."""
    try:
        Image.Exif().load(EXIF + data)
    except Exception:  # Pillow raises errors of every kind on damaged EXIF
        return False
    return True


def jpeg_segments_to_keep(content: bytes) -> Iterator[bytes]:
    """Yields the segments of a JPEG up to its first scan that are pixels or sound metadata, and then all the rest."""
    yield content[:2]
    start = 2
    while content[start] == 0xFF and content[start + 1] != 0xDA:
        if content[start + 1] == 0xFF or content[start + 1] in (0x01, *range(0xD0, 0xD8)):
            start += 1 if content[start + 1] == 0xFF else 2  # fill bytes, and markers without a segment
            continue
        (length,) = struct.unpack_from(">H", content, start + 2)
        end = start + 2 + max(2, length)
        if is_kept_segment(content[start + 1], content[start + 4 : end]):
            yield content[start:end]
        start = end
    yield content[start:]


def is_kept_segment(marker: int, data: bytes) -> bool:
    """Whether a JPEG segment is needed for the pixels, or is metadata that can be read."""
    if not (0xE0 <= marker <= 0xEF or marker == 0xFE):
        return True
    sound = {
        0xE0: data.startswith(b"JFIF\0") and len(data) >= JFIF_BYTES,
        0xE1: data.startswith(XMP) or (data.startswith(EXIF) and is_sound_exif(data[len(EXIF) :])),
        0xE2: data.startswith(ICC) and len(data) > len(ICC) + 2,
        0xEE: data.startswith(b"Adobe") and len(data) >= ADOBE_BYTES,
    }
    return sound.get(marker, False)


def strip_tiff(content: bytes) -> bytes:
    """Returns a TIFF whose first directory calls its metadata something that nobody reads."""
    order = "<" if content.startswith(b"II") else ">"
    (directory,) = struct.unpack_from(f"{order}I", content, 4)
    (count,) = struct.unpack_from(f"{order}H", content, directory)
    changed = bytearray(content)
    for start in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from(f"{order}H", content, start)[0] in TIFF_METADATA:
            struct.pack_into(f"{order}HHII", changed, start, TIFF_UNUSED, 1, 1, 0)
    return bytes(changed)


def strip_heif(content: bytes) -> bytes | None:
    """Returns a HEIF or AVIF whose list of items calls EXIF something that nobody reads, or None without any."""
    for kind, start, end in boxes(content, 0, len(content)):
        if kind == b"meta":
            for inner, first, last in boxes(content, start + 4, end):
                if inner == b"iinf" and b"Exif" in content[first:last]:
                    return content[:first] + re.sub(b"Exif", b"none", content[first:last]) + content[last:]
    return None


def boxes(content: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields type, first byte and end of the content of each ISO-BMFF box between two places."""
    while start + 8 <= end:
        length, kind = struct.unpack_from(">I4s", content, start)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", content, start + 8)
            head = 16
        length = length or end - start
        if length < head:
            return
        yield kind, start + head, min(end, start + length)
        start += length
