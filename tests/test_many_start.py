"""What `train-many` finds out about all subjects before it trains the first one: disks without room, long prompts."""

from pathlib import Path

import pytest
import yaml

from jaxbooth.base.trainable import add_trainable
from jaxbooth.config.manifest import SubjectRun, read_manifest
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.many.disk_needs import check_disks, class_requirements, root_requirements
from jaxbooth.many.long_prompts import warn_about_long_prompts
from jaxbooth.many.root import complete_subject
from jaxbooth.many.train import train_many
from jaxbooth.runs.program_folder import ProgramFolder
from jaxbooth.runs.restore import abstract_run_state
from tests.made_up_images import put

NAMES = ("mug", "cup", "jar", "pot", "pan", "can", "tin")
LONG = "a sks cup " + "on a table " * 40
RANK_2 = {"rank": 2, "targets": "attention"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with one photo for each subject."""
    folder = tmp_path_factory.mktemp("photos")
    for name in NAMES:
        (folder / name).mkdir()
        put(folder / name / "0.png", size=(64, 64))
    return folder


def write_manifest(photos: Path, path: Path, **entries: dict) -> Path:
    """Writes the entries of some subjects, all of one prompt unless they say otherwise."""
    shared = {"instance_prompt": "a sks cup", "class_prompt": "a cup"}
    path.write_text(
        yaml.safe_dump(
            [shared | {"name": name, "instance_dir": str(photos / name)} | own for name, own in entries.items()]
        )
    )
    return path


@pytest.fixture
def program(micro, photos, tmp_path):
    """Returns the subjects of a manifest, its root and its base model, as `train_many` has them."""

    def read(entries: dict[str, dict], **sections):
        sections = {"lora": RANK_2, "data": {"resolution": 64, "num_class_images": 10}} | sections
        config = Config.model_validate(sections | {"run_dir": str(tmp_path / "runs")})
        manifest = write_manifest(photos, tmp_path / "subjects.yaml", **entries)
        base, folder = add_trainable(micro, config), ProgramFolder(tmp_path / "runs")
        subjects = [complete_subject(subject, folder, base) for subject in read_manifest(manifest, config)]
        return subjects, folder, base

    return read


def sizes(requirements) -> dict[str, int]:
    return {requirement.purpose.partition(" of ")[0]: requirement.size for requirement in requirements}


def test_what_all_subjects_write_into_the_root_is_added_up(program, mesh):
    subjects, folder, base = program({name: {} for name in NAMES})
    state = abstract_run_state(subjects[0].config, base, mesh)
    adapters = 4 * sum(leaf.size for leaf in state.params.values())
    # Adam has two moments; two counts and the step are integers.
    size = 3 * adapters + 12
    assert sizes(root_requirements(folder, subjects, base, state, 3)) == {
        "7 checkpoints": 7 * size, "7 exports": 14 * adapters, "states": 2 * 3 * size,
    }  # fmt: skip


def test_a_subject_with_all_its_steps_lacks_its_export_alone(program, mesh):
    subjects, folder, base = program({"mug": {"steps": 5}, "cup": {}})
    state = abstract_run_state(subjects[0].config, base, mesh)
    (folder.root / "mug" / "checkpoints" / "5").mkdir(parents=True)
    (folder.root / "mug" / "checkpoints" / "5" / "_CHECKPOINT_METADATA").write_text("{}")
    assert list(sizes(root_requirements(folder, subjects, base, state, 8))) == ["1 checkpoint", "states", "2 exports"]
    [only] = root_requirements(folder, subjects[:1], base, state, 8)
    assert only.purpose.startswith("1 export of ")


def test_class_images_of_shared_classes_count_once_and_those_that_exist_do_not(program, tmp_path):
    entries = {"mug": {}, "cup": {}, "jar": {"class_prompt": "a jar"}, "pot": {"class_dir": str(tmp_path / "pots")}}
    subjects, _, base = program(entries)
    (tmp_path / "pots").mkdir()
    put(tmp_path / "pots" / "own.png", size=(64, 64))
    [requirement] = class_requirements(subjects, base)
    assert (requirement.purpose, requirement.size) == ("29 class images", 29 * 3 * 64**2)


def test_without_class_images_none_are_needed(program):
    subjects, _, base = program({"mug": {}}, prior={"method": "none"})
    assert class_requirements(subjects, base) == []


def test_a_class_folder_that_cannot_be_used_stops_no_other_subject(program, tmp_path):
    (tmp_path / "file").write_text("no folder")
    subjects, _, base = program({"mug": {"class_dir": str(tmp_path / "file")}, "cup": {}})
    [requirement] = class_requirements(subjects, base)
    assert requirement.purpose == "10 class images"


def test_a_disk_without_room_for_all_subjects_is_one_sentence(program, mesh):
    data = {"resolution": 4096, "num_class_images": 100_000}
    subjects, folder, base = program({"mug": {}, "cup": {}}, data=data)
    with pytest.raises(UserError) as refused:
        check_disks(folder, subjects, base, abstract_run_state(subjects[0].config, base, mesh), 2)
    sentence = str(refused.value)
    assert sentence.startswith(f"--run-dir {folder.root} has ")
    assert "2 checkpoints of " in sentence
    assert "100000 class images" in sentence


def test_it_is_refused_before_a_subject_is_begun(photos, micro_model, tmp_path):
    classes = {"class_dir": "/dev/shm/prior"}
    manifest = write_manifest(photos, tmp_path / "subjects.yaml", mug=classes, cup=classes)
    many = {"resolution": 512, "num_class_images": 100_000}
    with pytest.raises(UserError, match=r"--data.class-dir /dev/shm/prior has .* needs about 78.64 GB there"):
        train_many(
            manifest, None, 2, model=str(micro_model), run_dir=str(tmp_path / "runs"), lora=RANK_2, data=many,
            force=True,
        )  # fmt: skip
    assert not (tmp_path / "runs" / "mug").exists()


def warned(capsys, subjects: list[SubjectRun], base) -> str:
    warn_about_long_prompts(subjects, base)
    return " ".join(capsys.readouterr().out.split())


def test_subjects_with_prompts_that_are_too_long_are_named_in_one_warning(program, photos, tmp_path, capsys):
    entries = {name: {"instance_prompt": LONG} for name in NAMES if name != "cup"}
    subjects, _, base = program({"cup": {}} | entries)
    sentence = warned(capsys, subjects, base)
    assert sentence.count("warning") == 1
    assert "6 subjects with prompts longer than 32 tokens, whose end is lost: mug ('" in sentence
    assert sentence.endswith("), jar, pot, pan, can and 1 more")


def test_a_caption_beside_a_photo_is_such_a_prompt_and_a_missing_folder_is_not(program, photos, tmp_path, capsys):
    subjects, _, base = program({"mug": {}, "cup": {}, "jar": {"instance_dir": str(tmp_path / "gone")}})
    assert warned(capsys, subjects, base) == ""
    caption = photos / "cup" / "0.txt"
    caption.write_text(LONG)
    try:
        assert "1 subject with prompts longer than 32 tokens, whose end is lost: cup ('" in warned(
            capsys, subjects, base
        )
    finally:
        caption.unlink()
