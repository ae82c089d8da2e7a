"""Names that come from files stay inside their folder."""

import pytest

from jaxbooth.errors import UserError
from jaxbooth.storage.paths import plain_file_name, relative_file_name

OUTSIDE = (
    *("/etc/passwd", "../other.png", "sub/../../other.png", "..", ".", "", "./", "sub/"),
    *("C:\\x.png", "c:x.png", "sub\\b.png", "\\\\host\\share\\x.png"),
    *("a\0b.png", "\ud800.png", "x" * 256, "sub/" + "ü" * 128, 7, None, ["a.png"]),
)
PLAIN = ("a0.png", "photo [1] (2).jpeg", "100%.png", "ü.png", "..a.png", ".hidden", "a b'c\"#?.png", "x" * 255)


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_of_a_file_beside_it_is_taken_as_it_is(name: str) -> None:
    assert plain_file_name(name, "index.json") == relative_file_name(name, "index.json") == name


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("check", [plain_file_name, relative_file_name])
def test_a_name_that_leads_outside_is_refused_with_its_source(check, name: object) -> None:
    with pytest.raises(UserError, match=r"^models/index\.json names ") as refused:
        check(name, "models/index.json")
    assert len(str(refused.value)) < 250
    assert str(refused.value).isascii()


@pytest.mark.parametrize(("name", "inside"), [("sub/b.png", "sub/b.png"), ("./a0.png", "a0.png"), ("a//./b", "a/b")])
def test_a_path_below_the_folder_is_no_plain_name_but_a_relative_one(name: str, inside: str) -> None:
    assert relative_file_name(name, "metadata.jsonl") == inside
    with pytest.raises(UserError, match="not a plain file name"):
        plain_file_name(name, "metadata.jsonl")
