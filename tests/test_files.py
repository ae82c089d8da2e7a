"""Files appear whole or not at all, and PNGs say what made them."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxbooth.errors import UserError
from jaxbooth.storage.files import new_folder, remove_tree, write_bytes, write_json, write_png, write_text


def test_a_written_file_is_alone_in_its_folder(tmp_path):
    write_bytes(tmp_path / "a.bin", b"\0\1\2")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.bin": b"\0\1\2"}


def test_a_missing_folder_is_made(tmp_path):
    write_text(tmp_path / "deep" / "er" / "a.txt", "hello")
    assert (tmp_path / "deep" / "er" / "a.txt").read_text() == "hello"


def test_a_file_that_is_there_is_replaced(tmp_path):
    write_text(tmp_path / "a.txt", "a long first content")
    write_text(tmp_path / "a.txt", "second")
    assert (tmp_path / "a.txt").read_text() == "second"


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "a.txt", "é😀")
    assert (tmp_path / "a.txt").read_bytes() == "é😀".encode()


def test_a_written_file_is_readable_by_everyone(tmp_path):
    write_text(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_a_failure_while_writing_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(TypeError):
        write_bytes(tmp_path / "a.txt", 5)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old"}


def test_a_failure_while_renaming_leaves_nothing_beside_the_target(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_text(tmp_path / "taken", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_json_that_cannot_be_written_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()} == {"a.json": {"old": 1}}


def test_json_is_indented_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'


def test_a_png_carries_its_facts_and_its_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", Image.fromarray(pixels), {"prompt": "a café 😀", "seed": 3, "guidance_scale": 7.5})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"prompt": "a café 😀", "seed": "3", "guidance_scale": "7.5"}
        np.testing.assert_array_equal(image, pixels)


def test_the_same_png_is_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, Image.new("RGB", (4, 4), "red"), {"seed": 1})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_new_folder_fills_the_empty_one_that_a_symlink_leads_to(tmp_path):
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "out").symlink_to("disk/empty")
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "disk" / "empty" / "a").read_text() == "a"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "disk", "empty", "out"]


def test_a_mounted_folder_is_filled_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    inode = (tmp_path / "out").stat().st_ino
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "out")  # a mount takes privileges
    with new_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
    assert (tmp_path / "out").stat().st_ino == inode
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["sub", "a"]
    with pytest.raises(UserError, match="out exists already"), new_folder(tmp_path / "out"):
        pass


@pytest.mark.parametrize("name", ["x" * 235, "é" * 117, "😀" * 58])
def test_the_longest_name_of_a_folder_leaves_room_for_the_files_that_are_named_after_it(name, tmp_path):
    with new_folder(tmp_path / name) as folder:
        write_text(folder / f"{name}_comfyui.safetensors", "lora")
    with pytest.raises(UserError, match=r"--out .* cannot be written \(File name too long\)"), \
            new_folder(tmp_path / f"{name}1234"):  # fmt: skip
        pass


def test_a_broken_symlink_is_no_place_for_a_folder(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    for out in (tmp_path / "out", tmp_path / "out" / "new"):
        with pytest.raises(UserError, match=r"--out .*: the symlink \S+/out leads nowhere; remove it"), new_folder(out):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_removing_a_symlink_leaves_what_it_leads_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("a")
    (tmp_path / "link").symlink_to("kept")
    remove_tree(tmp_path / "link")
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["kept", "kept/a"]
    remove_tree(tmp_path / "kept")
    remove_tree(tmp_path / "kept")
    assert not list(tmp_path.iterdir())
