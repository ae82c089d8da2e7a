"""Captions that are there are used, or refused by name; none is passed over for the prompt."""

import json
import os
import unicodedata
from pathlib import Path

import pytest

from jaxbooth.config.limits import MAX_CAPTIONS, MAX_PROMPT
from jaxbooth.data.images import scan_folder
from jaxbooth.errors import UserError
from tests.made_up_images import CASES, caption_list, put

KEY = "--data.instance-dir"


def captions(folder: Path) -> dict[str, str]:
    return {image.path.name: image.caption for image in scan_folder(folder, "THE PROMPT", KEY).images}


def refusal(folder: Path) -> str:
    """The one short sentence that a folder is refused with."""
    with pytest.raises(UserError) as raised:
        scan_folder(folder, "THE PROMPT", KEY)
    assert len(str(raised.value)) <= 500
    return str(raised.value)


# What people had


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("caption-extension", {"a0.png": "CAPTION ZERO", "a2.png": "CAPTION TWO"}),
        ("metadata-paths", {"a0.png": "CAPTION ZERO", "a1.png": "CAPTION ONE"}),
        ("metadata-csv", {"a0.png": "CAPTION 0", "a1.png": "CAPTION 1", "a2.png": "CAPTION 2"}),
        (
            "jsonl-line-separator",
            {"a0.png": "a drawing of sks shape\N{LINE SEPARATOR}on a wall", "a1.png": "sks shape"},
        ),
    ],
)
def test_the_captions_of_a_folder_are_used(case, expected):
    assert captions(CASES / case) == expected


def test_a_file_that_is_named_twice_is_refused_with_both_lines():
    message = refusal(CASES / "metadata-twice")
    assert "metadata.jsonl, line 2: a.png has a caption already" in message
    assert "metadata.jsonl, line 1; keep one" in message


# Beside the image


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.caption", "a.Caption", "A.txt", "A.CAPTION"])
def test_a_caption_file_is_found_in_any_case(tmp_path, name):
    put(tmp_path / "a.png")
    (tmp_path / name).write_text("a red square\n")
    assert captions(tmp_path) == {"a.png": "a red square"}


def test_names_that_differ_in_capitals_only_keep_their_own_captions(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "A.png")
    put(tmp_path / "B.png")
    (tmp_path / "a.txt").write_text("small")
    (tmp_path / "A.txt").write_text("large")
    (tmp_path / "b.txt").write_text("only one")
    assert captions(tmp_path) == {"a.png": "small", "A.png": "large", "B.png": "only one"}


@pytest.mark.parametrize(("image", "text"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_both_unicode_forms_of_a_name_are_one_name(tmp_path, image, text):
    put(tmp_path / unicodedata.normalize(image, "Zoë.png"))
    put(tmp_path / unicodedata.normalize(image, "José.png"))
    (tmp_path / unicodedata.normalize(text, "Zoë.txt")).write_text("Zoë")
    caption_list(tmp_path, {"file_name": unicodedata.normalize(text, "José.png"), "text": "José"})
    assert sorted(captions(tmp_path).values()) == ["José", "Zoë"]


def test_one_caption_serves_all_images_of_its_name(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "a.jpg")
    (tmp_path / "a.caption").write_text("both")
    assert captions(tmp_path) == {"a.jpg": "both", "a.png": "both"}


def test_two_caption_files_that_agree_are_one_caption(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("the same")
    (tmp_path / "a.caption").write_text("the same\r\n")
    assert captions(tmp_path) == {"a.png": "the same"}


def test_two_caption_files_that_differ_are_refused(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.caption").write_text("two")
    assert "a.caption and a.txt hold different captions for a.png; keep one" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["one, red\ntwo\n", "\ufeffone, red\r\n\r\n two \r\n\r\n", "\n\none, red\rtwo"])
@pytest.mark.parametrize("name", ["a.txt", "a.caption"])
def test_each_line_of_a_caption_file_is_a_caption(tmp_path, name, content):
    put(tmp_path / "a.png")
    (tmp_path / name).write_text(content, newline="")
    [image] = scan_folder(tmp_path, "THE PROMPT", KEY).images
    assert (image.caption, image.captions) == ("one, red", ("one, red", "two"))


def test_a_line_separator_starts_no_other_caption(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one\N{LINE SEPARATOR}line")
    [image] = scan_folder(tmp_path, "THE PROMPT", KEY).images
    assert image.captions == ("one\N{LINE SEPARATOR}line",)


def test_more_captions_of_an_image_than_are_kept_are_refused_with_the_limit(tmp_path):
    put(tmp_path / "a.png")
    lines = [f"caption {number}" for number in range(MAX_CAPTIONS + 1)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    assert "a.txt: a.png has 1,001 captions; at most 1,000 are read" in refusal(tmp_path)
    (tmp_path / "a.txt").write_text("\n".join(lines[:-1]))
    [image] = scan_folder(tmp_path, "THE PROMPT", KEY).images
    assert image.captions == tuple(lines[:-1])


def test_a_caption_of_a_megabyte_is_refused_with_the_limit(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x" * 2**20)
    assert f"a.txt: the caption has 1,048,576 characters; at most {MAX_PROMPT:,} are read" in refusal(tmp_path)
    (tmp_path / "a.txt").write_text("x" * MAX_PROMPT)
    assert captions(tmp_path) == {"a.png": "x" * MAX_PROMPT}


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "metadata.jsonl", "metadata.csv"])
def test_a_pipe_in_place_of_captions_is_refused_at_once(tmp_path, name):
    put(tmp_path / "a.png")
    os.mkfifo(tmp_path / name)
    assert f"{name} is not a file" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.caption", "metadata.csv"])
def test_captions_in_another_encoding_are_refused(tmp_path, name):
    put(tmp_path / "a.png")
    (tmp_path / name).write_bytes("file_name,text\na.png,caf\xe9".encode("latin-1"))
    assert f"{name} is not UTF-8 text" in refusal(tmp_path)


# Lists


@pytest.mark.parametrize("name", ["./a.png", "././a.png", "A.PNG", "a.png"])
def test_a_list_may_spell_a_name_as_a_path_or_in_capitals(tmp_path, name):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": name, "text": "one"})
    assert captions(tmp_path) == {"a.png": "one"}


@pytest.mark.parametrize("name", ["../b.png", "sub/../../b.png", "/etc/b.png", "C:\\b.png", "..\\b.png", "~\0", ""])
def test_a_list_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    folder = tmp_path / "photos"
    folder.mkdir()
    put(folder / "a.png")
    put(tmp_path / "b.png")
    caption_list(folder, {"file_name": "a.png", "text": "one"}, {"file_name": name, "text": "two"})
    assert "metadata.jsonl, line 2 names" in refusal(folder)


def test_a_list_that_names_an_image_in_a_subfolder_is_refused_with_what_to_do(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    put(tmp_path / "sub" / "b.png")
    caption_list(tmp_path, {"file_name": "sub/b.png", "text": "one"})
    assert "line 1: 'sub/b.png' is in a subfolder, which is not read; move it" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["b.psd", "notes.txt", "a.mask.png"])
def test_a_list_that_names_something_else_than_an_image_is_refused(tmp_path, name):
    put(tmp_path / "a.png")
    (tmp_path / name).write_bytes(b"x")
    caption_list(tmp_path, {"file_name": name, "text": "one"})
    assert f"line 1: {name} is not an image that is read here" in refusal(tmp_path)


def test_a_name_that_two_images_may_have_is_refused(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "A.png")
    caption_list(tmp_path, {"file_name": "a.PNG", "text": "one"})
    assert "line 1: 'a.PNG' may be A.png or a.png" in refusal(tmp_path)


def test_a_file_that_is_named_twice_in_other_spellings_or_lists_is_refused(tmp_path):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", "text": "one"}, {"file_name": "./A.png", "text": "one"})
    assert "line 2: a.png has a caption already" in refusal(tmp_path)
    caption_list(tmp_path, {"file_name": "a.png", "text": "one"})
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,one\n")
    message = refusal(tmp_path)
    assert "metadata.csv, line 2" in message
    assert "metadata.jsonl, line 1" in message


@pytest.mark.parametrize("fields", [
    {"text": []}, {"text": ["one", 2]}, {"text": [["one"]]}, {"text": ["one", " "]},
    {"caption": {"en": "one"}}, {"prompt": 7}, {"text": "one", "caption": "two"},
    {"text": None}, {"label": "one"}, {"text": "half \ud83d"}, {"text": "  "}, {"text": "x" * (MAX_PROMPT + 1)},
])  # fmt: skip
def test_what_is_not_one_caption_is_refused_with_its_line(tmp_path, fields):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", **fields})
    assert "metadata.jsonl, line 1: " in refusal(tmp_path)


@pytest.mark.parametrize("repeated", ['"text": "two"', '"file_name": "b.png"'])
def test_a_key_that_is_there_twice_is_refused_with_its_line(tmp_path, repeated):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "a.png", "text": "one", {repeated}}}\n')
    assert "metadata.jsonl, line 1: " in refusal(tmp_path)


def test_keys_that_agree_or_hold_nothing_are_one_caption(tmp_path):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", "text": None, "prompt": "one", "caption": "one", "width": 8})
    assert captions(tmp_path) == {"a.png": "one"}


def test_a_list_may_hold_several_captions_of_an_image(tmp_path):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", "text": ["one", "two\nlines"], "caption": ["one", "two\nlines"]})
    [image] = scan_folder(tmp_path, "THE PROMPT", KEY).images
    assert image.captions == ("one", "two\nlines")


def test_keys_with_different_lists_of_captions_are_refused(tmp_path):
    put(tmp_path / "a.png")
    caption_list(tmp_path, {"file_name": "a.png", "text": ["one", "two"], "caption": "one"})
    assert "line 1: text and caption hold different captions; keep one of them" in refusal(tmp_path)


def test_a_csv_caption_may_have_commas_quotes_and_lines(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path / "b.png")
    lines = ["\ufeffid,file_name,text", '1,a.png,"red, ""large""\nand round"', "", "2,b.png,plain"]
    (tmp_path / "metadata.csv").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    assert captions(tmp_path) == {"a.png": 'red, "large"\nand round', "b.png": "plain"}


@pytest.mark.parametrize(("lines", "sentence"), [
    (["a.png,one"], "line 1: expected the columns file_name and text"),
    (["file_name,label", "a.png,one"], "line 1: expected the columns file_name and text"),
    ([], "line 1: expected the columns"),
    (["file_name,text", "a.png,red, and round"], "line 2: 3 cells, expected 2; quote"),
    (["file_name,text", '"a.png","two', "lines"], "it is not CSV"),
    (["file_name,text,text", "a.png,one,two"], "line 1: text is there twice"),
    (["file_name,text", "", 'a.png,"one', 'two"', "gone.png,three"], "line 5: gone.png does not exist"),
])  # fmt: skip
def test_a_csv_that_would_lose_a_caption_is_refused_with_its_line(tmp_path, lines, sentence):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    assert sentence in refusal(tmp_path)


def test_a_list_in_parquet_is_refused(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    assert "metadata.parquet: captions are not read from Parquet" in refusal(tmp_path)


def test_the_name_of_a_list_may_be_in_capitals(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "Metadata.JSONL").write_text(json.dumps({"file_name": "a.png", "text": "one"}))
    assert captions(tmp_path) == {"a.png": "one"}


def test_caption_files_that_a_list_overrules_are_told(tmp_path):
    put(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one")
    caption_list(tmp_path, {"file_name": "a.png", "text": "two"})
    folder = scan_folder(tmp_path, "THE PROMPT", KEY)
    assert (folder.images[0].caption, folder.overruled) == ("two", ["a.txt"])
