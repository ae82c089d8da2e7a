"""The subjects of a folder of runs: how they are written down, when the folder may be continued, and shares of them."""

import json

import pytest

from jaxbooth.config.load import load_config, with_overrides
from jaxbooth.config.manifest import check_same_manifest, dump_manifest, read_manifest, take_shard
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError

PROGRAM = Config.model_validate(
    {"run_dir": "runs", "seed": 3, "train": {"steps": 500}, "data": {"instance_prompt": "a sks dog"}}
)
MUG = {"name": "mug", "instance_dir": "/photos/mug", "learning_rate": 1e-4, "class_prompt": "a mug"}
CUP = {"name": "cup", "instance_dir": "/photos/cup", "validation_prompts": ["a sks dog in snow"]}


@pytest.fixture
def read(tmp_path):
    """Returns the subjects of a manifest with the given entries."""

    def read(*entries, program=PROGRAM):
        path = tmp_path / "subjects.yaml"
        path.write_text(json.dumps(entries))  # JSON is YAML
        return read_manifest(path, program)

    return read


@pytest.fixture
def root(read, tmp_path):
    """Returns the manifest of a folder that holds runs of MUG and CUP."""
    path = tmp_path / "manifest.jsonl"
    path.write_text(dump_manifest(read(MUG, CUP)))
    return path


# Written down


def test_subjects_are_written_with_all_that_may_differ(read, tmp_path):
    assert dump_manifest(read(MUG | {"class_dir": "mugs"}, CUP)) == (
        f'{{"class_dir": "{tmp_path}/mugs", "class_prompt": "a mug", "instance_dir": "/photos/mug", "instance_prompt": '
        '"a sks dog", "learning_rate": 0.0001, "name": "mug", "seed": 3, "steps": 500, "validation_prompts": []}\n'
        '{"instance_dir": "/photos/cup", "instance_prompt": "a sks dog", "name": "cup", "seed": 3, "steps": 500, '
        '"validation_prompts": ["a sks dog in snow"]}\n'
    )


def test_what_is_written_is_a_manifest_of_the_same_subjects(read, root):
    configs = [subject[:2] for subject in read(MUG, CUP)]
    assert [subject[:2] for subject in read_manifest(root, PROGRAM)] == configs
    assert dump_manifest(read_manifest(root, PROGRAM)) == root.read_text()


def test_the_embedded_subject_is_written_by_its_name(read, tmp_path):
    subjects = read({"name": "cat", "instance_dir": "demo"}, program=load_config("demo"))
    assert json.loads(dump_manifest(subjects))["instance_dir"] == "demo"


# Continued


def test_a_folder_without_a_manifest_takes_any_subjects(read, tmp_path):
    check_same_manifest(tmp_path / "manifest.jsonl", read(MUG))


@pytest.mark.parametrize(
    "entries",
    [
        (MUG, CUP),
        (CUP, MUG),
        ({"name": "new", "instance_dir": "n"}, MUG, {"name": "newer", "instance_dir": "n"}, CUP),
        (MUG | {"steps": 800}, CUP),
        (MUG | {"seed": 3, "instance_prompt": "a sks dog"}, CUP),
    ],
)
def test_new_subjects_another_order_and_more_steps_continue_a_folder(read, root, entries):
    check_same_manifest(root, read(*entries))


@pytest.mark.parametrize(
    ("entries", "difference"),
    [
        ((MUG,), "cup is no longer there"),
        ((MUG, CUP | {"name": "Cup"}), "cup is no longer there"),
        ((MUG | {"learning_rate": 2e-4}, CUP), "mug had the learning rate 0.0001 and has 0.0002"),
        ((MUG | {"steps": 400}, CUP), "mug had the steps 500 and has 400"),
        ((MUG, CUP | {"seed": 4}), "cup had the seed 3 and has 4"),
        ((MUG, CUP | {"class_prompt": "a cup"}), "cup had no class prompt and has 'a cup'"),
        ((MUG | {"learning_rate": None}, CUP), "mug had the learning rate 0.0001 and has none"),
        ((MUG | {"instance_dir": "/mug"}, CUP), "mug had the instance dir '/photos/mug' and has '/mug'"),
    ],
)
def test_a_subject_that_is_gone_or_has_changed_needs_another_folder(read, root, entries, difference):
    with pytest.raises(UserError) as refusal:
        check_same_manifest(root, read(*entries))
    assert str(refusal.value) == f"{root} was made of another manifest: {difference}; choose another --run-dir."


def test_another_seed_of_the_program_is_another_seed_of_its_subjects(read, root):
    with pytest.raises(UserError, match="mug had the seed 3 and has 5"):
        check_same_manifest(root, read(MUG, CUP, program=with_overrides(PROGRAM, {"seed": 5})))


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "mug"}', '{"name": 5, "instance_dir": "a"}'])
def test_a_damaged_manifest_of_the_folder_is_named_with_its_line(read, root, content):
    root.write_text(content)
    with pytest.raises(UserError, match=r"manifest\.jsonl, line 1"):
        check_same_manifest(root, read(MUG))


# Shares


def test_shares_take_turns_and_make_up_the_whole(read):
    subjects = read(*({"name": f"s{n}", "instance_dir": "a"} for n in range(7)))
    shares = [[subject.name for subject in take_shard(subjects, f"{share}/3")] for share in (1, 2, 3)]
    assert shares == [["s0", "s3", "s6"], ["s1", "s4"], ["s2", "s5"]]
    assert take_shard(subjects, "1/1") == subjects


def test_a_share_may_be_empty(read):
    assert take_shard(read(MUG), "2/2") == []


@pytest.mark.parametrize("shard", ["0/8", "9/8", "0/0", "1", "1/", "-1/8", "1/8/2", "1.0/8", "١/٨", " 1/8", ""])
def test_a_share_that_does_not_exist_is_refused(read, shard):
    with pytest.raises(UserError) as refusal:
        take_shard(read(MUG), shard)
    assert str(refusal.value) == (
        f"--shard {shard!r} is not valid: I/N is needed, such as 1/8 for the first of 8 shares."
    )
