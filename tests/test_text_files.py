"""Text and JSON files are read in one way, whatever wrote them."""

import os

import pytest

from jaxbooth.errors import UserError
from jaxbooth.storage.text import read_json, read_lines, read_text


@pytest.mark.parametrize("content", [b"a\nb\n", b"\xef\xbb\xbfa\r\nb\r\n", b"a\rb", b"a\nb"])
def test_line_ends_and_a_byte_order_mark_change_nothing(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    assert read_lines(tmp_path / "a.txt") == ["a", "b"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_only_line_ends_end_a_line(tmp_path, mark):
    (tmp_path / "a.txt").write_text(f"a{mark}b\nc", encoding="utf-8")
    assert read_lines(tmp_path / "a.txt") == [f"a{mark}b", "c"]


def test_an_empty_file_has_no_lines(tmp_path):
    (tmp_path / "a.txt").touch()
    assert read_lines(tmp_path / "a.txt") == []


def test_reading_does_not_depend_on_the_locale(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes("é😀".encode())
    monkeypatch.setattr("locale.getencoding", lambda: "ascii")
    assert read_text(tmp_path / "a.txt") == "é😀"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfea", "is not UTF-8 text"),
        (b"[" * 200_000, "is nested too deeply"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "is nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "is not valid JSON"),
        (b"[1]", "does not hold a JSON object"),
        (b"", "is not valid JSON"),
    ],
)
def test_what_is_no_json_object_is_one_short_sentence(tmp_path, content, sentence):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as raised:
        read_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(raised.value)
    assert len(str(raised.value)) < 500


def folder(path):
    path.mkdir()


def loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize("make", [folder, os.mkfifo, loop, lambda path: None])
def test_what_is_no_file_is_named_at_once(tmp_path, make):
    make(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt (is not a file|cannot be read|is missing)"):
        read_text(tmp_path / "a.txt")


def test_a_file_is_read_no_further_than_its_limit(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 11)
    with pytest.raises(UserError, match="larger than 10 bytes"):
        read_text(tmp_path / "a.txt", max_bytes=10)
    assert read_text(tmp_path / "a.txt", max_bytes=11) == "x" * 11
