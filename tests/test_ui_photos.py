"""Uploaded photos: their names, what is refused, and that none is ever half there."""

import http.client
import io
import socket
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageFilter

from jaxbooth.data.images import image_files, load_image
from jaxbooth.errors import UserError
from jaxbooth.ui.photo_facts import find_duplicates, read_facts
from jaxbooth.ui.photos import UPLOADS, safe_name, write_caption
from tests.ui_server import UiServer, ui_server

ODD = "<img src=x onerror=alert(1)>.png"
PHOTOS = sorted((Path(__file__).parents[1] / "jaxbooth" / "assets" / "fluent-cat").glob("*.png"))


@pytest.fixture
def server(tmp_path):
    with ui_server(tmp_path / "runs") as running:
        (running.roots.photos / "dog").mkdir(parents=True)
        yield running


def png(size: int = 64, seed: int = 0) -> bytes:
    """Returns a photo of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def send(server: UiServer, name: str, content: bytes, folder: str = "dog"):
    """Uploads a photo as the page does."""
    address = f"/new/photos/{folder}/upload?name={quote(name)}"
    return server.send("POST", address, content, server.bearer)


def uploads(server: UiServer) -> Iterator[Path]:
    """Yields uploads that are not complete."""
    folder = server.roots.server / UPLOADS
    return folder.iterdir() if folder.is_dir() else iter(())


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until something holds."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kept(server: UiServer) -> list[str]:
    """Returns the names of what lies in the folder of photos."""
    return sorted(path.name for path in (server.roots.photos / "dog").iterdir())


def chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    checksum = zlib.crc32(kind + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + kind + content + checksum


def bomb(side: int) -> bytes:
    """Returns a PNG of a few hundred kilobytes that claims side x side black pixels."""
    header = side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    pack = zlib.compressobj(9)
    rows = b"".join(pack.compress(bytes(1 + 3 * side)) for _ in range(side)) + pack.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        (ODD, ODD),
        ("../../etc/passwd.png", "passwd.png"),
        ("C:\\photos\\a.JPG", "a.JPG"),
        ("...hidden.png", "hidden.png"),
        ("a\x00b\nc\u202e.png", "abc.png"),
        ("é" * 300 + ".jpg", "é" * 60 + ".jpg"),
    ],
)
def test_a_name_is_kept_as_far_as_it_is_safe(name, safe):
    assert safe_name(name) == safe


@pytest.mark.parametrize("name", ["", "a", "run.sh", "photo.svg", "page.html", "..", "a.png/..", " .png"])
def test_a_name_of_what_is_no_photo_is_refused(name):
    with pytest.raises(UserError, match="is not read"):
        safe_name(name)


def test_an_uploaded_photo_can_be_trained_on_whatever_its_name_is(server):
    answer = send(server, ODD, png())
    assert answer.status == 200
    [photo] = image_files(server.roots.photos / "dog")
    assert photo.name == ODD
    assert load_image(photo).size == (64, 64)


def test_the_same_photo_is_kept_once_and_another_one_of_that_name_beside_it(server):
    for seed in (1, 1, 2):
        send(server, "a.png", png(seed=seed))
    send(server, "A.jpg", png(seed=3))  # would have the same caption file
    assert kept(server) == ["A (3).jpg", "a (2).png", "a.png"]


@pytest.mark.parametrize("content", [b"GIF89a", b"not an image", png()[:500], b""])
def test_what_cannot_be_decoded_is_refused_by_name(server, content):
    answer = send(server, "a.png", content)
    assert answer.status == 422
    assert "a.png" in answer.text or "empty" in answer.text
    assert str(server.roots.server) not in answer.text
    assert kept(server) == []


def test_a_bomb_is_refused_by_its_header(server):
    content = bomb(8000)
    assert len(content) < 400_000
    tracemalloc.start()
    answer = send(server, "bomb.png", content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert answer.status == 422
    assert "bomb.png claims 64,000,000 pixels" in answer.text
    assert peak < 20e6


def test_an_upload_that_is_too_large_is_told(server):
    announced = server.send(
        "POST", "/new/photos/dog/upload?name=a.png", b"", {**server.bearer, "content-length": "200000000"}
    )
    assert announced.status == 413
    assert "at most 64 MiB" in announced.text
    assert kept(server) == []


def test_an_upload_that_does_not_say_its_size_is_stopped(server):
    pieces = (bytes(2**20) for _ in range(70))
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    with suppress(OSError):  # the server answers before all is sent
        connection.request("POST", "/new/photos/dog/upload?name=a.png", pieces, server.bearer, encode_chunked=True)
    with suppress(OSError, http.client.HTTPException):
        assert connection.getresponse().status == 413
    connection.close()
    assert kept(server) == []
    assert not any(uploads(server))


def test_a_connection_that_breaks_leaves_nothing(server):
    content = png(512)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = (
            f"POST /new/photos/dog/upload?name=a.png HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
        )
        connection.sendall(
            f"{head}Authorization: Bearer {server.token}\r\n\r\n".encode() + content[: len(content) // 2]
        )
        wait_for(lambda: any(uploads(server)))
        assert kept(server) == []
    wait_for(lambda: not any(uploads(server)))
    assert kept(server) == []


def test_a_server_that_starts_removes_what_a_killed_one_has_left(tmp_path):
    own = tmp_path / ".jaxbooth-ui"
    for left in (own / UPLOADS / "half", own / "plan-x.yaml", own / "new-x" / "config.yaml"):
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"half")
    with ui_server(tmp_path):
        assert sorted(path.name for path in own.iterdir()) == ["token", UPLOADS]


@pytest.mark.parametrize("folder", ["..", "%2e%2e", "..%2fdog", ".jaxbooth-ui", "link", "missing", "%00"])
def test_photos_go_nowhere_else(server, tmp_path, folder):
    (tmp_path / "outside").mkdir()
    (server.roots.photos / "link").symlink_to(tmp_path / "outside")
    assert send(server, "a.png", png(), folder).status == 404
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("name", ["../cat/a.png", "a.txt", "missing.png", "", ".."])
def test_only_images_of_the_folder_are_removed(server, name):
    for folder in ("cat", "dog"):
        (server.roots.photos / folder).mkdir(exist_ok=True)
        (server.roots.photos / folder / "a.png").write_bytes(png())
    (server.roots.photos / "dog" / "a.txt").write_text("mine")
    assert server.post("/new/photos/dog/remove", {"photo": name}).status == 404
    assert kept(server) == ["a.png", "a.txt"]


def test_a_photo_goes_with_its_captions_and_its_mask(server):
    for name in ("a.png", "a.mask.png", "b.png"):
        send(server, name, png(seed=len(name)))
    send(server, "a.txt", b"a dog")
    assert server.post("/new/photos/dog/remove", {"photo": "a.png"}).status == 204
    assert kept(server) == ["b.png"]


def test_captions_are_written_beside_the_photo_and_removed_when_they_are_empty(server):
    folder = server.roots.photos / "dog"
    send(server, "a.b.png", png())
    write_caption(folder, "a.b.png", "  a dog \r\n\r\n</script> on grass\n")
    assert (folder / "a.b.txt").read_text() == "a dog\n</script> on grass\n"
    write_caption(folder, "a.b.png", " \n")
    assert kept(server) == ["a.b.png"]
    with pytest.raises(UserError, match=r"has 10,001 characters"):
        write_caption(folder, "a.b.png", "x" * 10_001)


def test_copies_are_found_and_blurred_photos_too():
    facts = {path.name: read_facts(path) for path in PHOTOS}
    assert not any(fact.may_be_blurred for fact in facts.values())
    names = list(facts)
    twins = find_duplicates([fact.fingerprint for fact in facts.values()])
    assert {(names[first], names[second]) for second, first in twins.items()} == {("cat-face.png", "grinning.png")}


def test_a_photo_without_anything_sharp_may_be_blurred(tmp_path):
    sharp = load_image(PHOTOS[0]).image
    sharp.filter(ImageFilter.GaussianBlur(4)).save(tmp_path / "blurred.png")
    assert read_facts(tmp_path / "blurred.png").may_be_blurred
