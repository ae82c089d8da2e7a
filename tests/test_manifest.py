"""The manifest of train-many: what an entry replaces in the program's configuration, and what is refused."""

import json
from pathlib import Path

import pytest

from jaxbooth.config.load import load_config
from jaxbooth.config.manifest import read_manifest
from jaxbooth.config.manifest_entry import RESERVED_NAMES
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flatten
from jaxbooth.errors import UserError

DOGS = {"instance_prompt": "a photo of sks dog", "class_prompt": "a photo of a dog"}
ENTRY = "name: mug, instance_dir: mug"


def configure(**sections):
    return Config.model_validate({"run_dir": "runs/all", "lora": {"rank": 4}, "data": DOGS} | sections)


PROGRAM = configure(seed=3, train={"steps": 500}, validation={"prompts": ["a sks dog in snow"]})


@pytest.fixture
def read(tmp_path):
    """Returns the subjects of a manifest with the given content."""

    def read(content, program=PROGRAM, name="subjects.yaml"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return read_manifest(path, program)

    return read


@pytest.fixture
def reason(read, tmp_path):
    """Returns why a manifest is refused, without the folder that it lies in."""

    def refuse(content, program=PROGRAM, name="subjects.yaml"):
        with pytest.raises(UserError) as refusal:
            read(content, program, name)
        return str(refusal.value).replace(f"{tmp_path}/", "")

    return refuse


def changed(subject, program=PROGRAM):
    before = flatten(program)
    return {key: value for key, value in flatten(subject.config).items() if value != before[key]}


# What an entry replaces


def test_an_entry_replaces_what_it_names_and_the_rest_is_the_programs(read, tmp_path):
    [subject] = read(f"- {{{ENTRY}}}")
    assert subject.name == "mug"
    assert changed(subject) == {"run_dir": "runs/all/mug", "data.instance_dir": tmp_path / "mug"}


def test_every_key_of_an_entry_has_its_place_in_the_configuration(read, tmp_path):
    [subject] = read(
        "- name: mug\n  instance_dir: photos/mug\n  instance_prompt: a sks mug\n  class_prompt: a mug\n"
        "  class_dir: mugs\n  seed: 7\n  steps: 800\n  learning_rate: 2e-4\n  validation_prompts: [a red sks mug]\n"
    )
    assert changed(subject) == {
        "run_dir": "runs/all/mug",
        "seed": 7,
        "data.instance_dir": tmp_path / "photos/mug",
        "data.instance_prompt": "a sks mug",
        "data.class_dir": tmp_path / "mugs",
        "data.class_prompt": "a mug",
        "train.steps": 800,
        "train.learning_rate": 2e-4,
        "validation.prompts": ("a red sks mug",),
    }


def test_json_lines_say_the_same_as_yaml(read):
    yaml = read(f"- {{{ENTRY}, seed: 1}}\n- {{name: cup, instance_dir: /cup, validation_prompts: []}}")
    lines = (
        '\ufeff{"name": "mug", "instance_dir": "mug", "seed": 1}\r\n\n'
        '{"name": "cup", "instance_dir": "/cup", "validation_prompts": []}'
    )
    assert [subject[:2] for subject in read(lines, name="subjects.jsonl")] == [subject[:2] for subject in yaml]


def test_an_absolute_folder_and_one_of_the_home_stay_where_they_are(read, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    subjects = read("- {name: a, instance_dir: /photos/a}\n- {name: b, instance_dir: ~/b}")
    assert [subject.config.data.instance_dir for subject in subjects] == [Path("/photos/a"), tmp_path / "b"]


def test_runs_in_an_object_store_lie_below_its_folder(read):
    [subject] = read(f"- {{{ENTRY}}}", configure(run_dir="gs://bucket/all/"))
    assert subject.config.run_dir == "gs://bucket/all/mug"


def test_the_programs_class_images_go_with_its_class_only(read, tmp_path):
    program = configure(data=DOGS | {"class_dir": "/dogs"})
    dog, also_dog, cat = read(
        "- {name: dog, instance_dir: a}\n"
        "- {name: also-dog, instance_dir: b, class_prompt: a photo of a dog}\n"
        "- {name: cat, instance_dir: c, class_prompt: a photo of a cat}\n",
        program,
    )
    assert [s.config.data.class_dir for s in (dog, also_dog, cat)] == [Path("/dogs"), Path("/dogs"), None]


def test_a_repeated_setting_of_the_program_is_no_contradiction(read):
    [subject] = read(f"- {{{ENTRY}, lora: {{rank: 4}}, model: demo, data.flip: false, prior.method: class-images}}")
    assert set(changed(subject)) == {"run_dir", "data.instance_dir"}


# The embedded subject


def test_the_embedded_subject_keeps_the_prompts_of_its_configuration(read):
    [subject] = read("- {name: cat, instance_dir: demo}", load_config("demo"))
    assert set(changed(subject, load_config("demo"))) == {"run_dir"}


def test_prompts_of_the_embedded_subject_do_not_go_with_other_photos(read, reason):
    demo = load_config("demo")
    [subject] = read(f"- {{{ENTRY}, instance_prompt: a sks mug}}", demo)
    assert (subject.config.data.instance_prompt, subject.config.data.class_prompt) == ("a sks mug", None)
    assert reason(f"- {{{ENTRY}}}", demo) == (
        "subjects.yaml, line 1 (mug): instance_prompt is missing; write one with a rare identifier, such as 'a photo "
        "of sks dog'."
    )


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "subjects.yaml is empty; write one entry a subject, with its name and instance_dir."),
        ("[]", "subjects.yaml is empty; write one entry a subject, with its name and instance_dir."),
        ("name: mug", "subjects.yaml: expected a list, found dict; begin each entry with a dash."),
        ("- mug", "subjects.yaml, line 1: expected keys and values, such as name: mug, found str."),
        ("- {name: mug", "subjects.yaml is not valid YAML"),
        ("- name: mug\n  seed: 1\n  seed: 2", "subjects.yaml: the key 'seed' stands in line 2 and again in line 3"),
    ],
)
def test_what_is_no_list_of_entries_is_named(reason, content, message):
    assert reason(content).startswith(message)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("instance_dir: mug", ": name is missing; it becomes the name of the subject's run folder."),
        ("name: mug", " (mug): instance_dir is missing: the folder with the subject's images."),
        ("name: mug, instance_dir: ''", " (mug): instance_dir is missing: the folder with the subject's images."),
        ("name: mug, instance_dir: 5", " (mug): instance_dir = 5 is not valid: a path is needed."),
        ("name: 5, instance_dir: mug", ": name = 5 is not valid: text is needed."),
        ("name: {a: b}, instance_dir: mug", ": name = {'a': 'b'} is not valid: text is needed."),
        (f"{ENTRY}, seed: one", " (mug): seed = 'one' is not valid: a whole number is needed."),
        (f"{ENTRY}, seed: true", " (mug): seed = True is not valid: input should not be true or false."),
        (f"{ENTRY}, steps: 0", " (mug): steps = 0 is not valid: input should be greater than 0."),
        (f"{ENTRY}, learning_rate: .nan", " (mug): learning_rate = nan is not valid: input should be a finite number."),
        (f"{ENTRY}, validation_prompts: a", " (mug): validation_prompts = 'a' is not valid: a list is needed."),
        (f"{ENTRY}, validation_prompts: [5]", " (mug): validation_prompts.0 = 5 is not valid: text is needed."),
        (f"{ENTRY}, instance_prompt: ' '", " (mug): instance_prompt is missing; write one with a rare identifier"),
    ],
)
def test_a_value_is_refused_with_its_line_and_key(reason, entry, message):
    assert reason(f"# subjects\n- {{{entry}}}").startswith(f"subjects.yaml, line 2{message}")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "a b", "é", "a\n", "x" * 129])
def test_a_name_that_is_no_plain_folder_name_is_refused(reason, name):
    entry = json.dumps({"name": name, "instance_dir": "mug"})
    assert reason(entry, name="subjects.jsonl").endswith(
        "is not valid: a folder's name is needed: letters, digits, -, _ and ., not first a dot, 128 at most."
    )


@pytest.mark.parametrize("name", ["x" * 128, "-", "v1.0_a", "007"])
def test_a_plain_folder_name_is_a_name(read, name):
    assert read(f"- {{name: '{name}', instance_dir: mug}}")[0].name == name


@pytest.mark.parametrize("name", [*RESERVED_NAMES, "Checkpoints"])
def test_a_name_of_the_folder_of_all_runs_is_refused(reason, name):
    assert reason(f"- {{name: {name}, instance_dir: mug}}") == (
        f"subjects.yaml, line 1 ({name}): name = '{name}' is not valid: train-many keeps something else under that "
        "name."
    )


@pytest.mark.parametrize("second", ["mug", "MUG"])
def test_two_subjects_of_one_name_are_refused_with_both_lines(reason, second):
    assert reason(f"- {{{ENTRY}}}\n- {{name: cup, instance_dir: c}}\n- {{name: {second}, instance_dir: b}}") == (
        f"subjects.yaml, line 3 ({second}): line 1 has that name already, and capitals are no difference; choose "
        "another."
    )


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("instance_promt", "perhaps you meant instance_prompt."),
        ("instance-dir", "perhaps you meant instance_dir."),
        ("Steps", "perhaps you meant steps."),
        ("rank", "here it is lora.rank."),
        ("max_train_steps", "here it is steps."),
        ("lora.rnak", "perhaps you meant lora.rank or "),
        ("lora", "lora is a group of settings, such as lora.rank and lora.kind."),
        ("5", "an entry has name, instance_dir, "),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_what_it_may_mean(reason, key, hint):
    assert reason(f"- name: mug\n  instance_dir: mug\n- name: cup\n  {key}: 8").startswith(
        f"subjects.yaml, line 3 (cup): unknown key '{key}'; {hint}"
    )


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ("lora: {rank: 8}", "lora.rank 8 is not the program's 4"),
        ("lora.rank: 8", "lora.rank 8 is not the program's 4"),
        ("model: sd15", "model 'sd15' is not the program's 'demo'"),
        ("data: {resolution: 512}", "data.resolution 512 is not the program's None"),
        ("data.num_class_images: 50", "data.num_class_images 50 is not the program's 200"),
    ],
)
def test_what_all_subjects_share_cannot_differ(reason, setting, difference):
    assert reason(f"- {{{ENTRY}, {setting}}}") == (
        f"subjects.yaml, line 1 (mug): {difference}; one program trains subjects of one base model, resolution, LoRA "
        "and batch: what may differ is name, instance_dir, instance_prompt, class_prompt, class_dir, seed, steps, "
        "learning_rate, validation_prompts."
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train: {steps: 500}", "train.steps is written steps in a manifest."),
        ("data.instance_dir: x", "data.instance_dir is written instance_dir in a manifest."),
        ("lora: {rank: many}", "lora.rank = 'many' is not valid: a whole number is needed."),
    ],
)
def test_a_key_of_a_configuration_is_answered_with_the_entrys_own(reason, setting, message):
    assert reason(f"- {{{ENTRY}, {setting}}}") == f"subjects.yaml, line 1 (mug): {message}"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('["mug"]', "does not hold a JSON object"),
        ('{"name": "mug",', "is not valid JSON"),
        ('{"name": "mug", "seed": 1, "seed": 2}', ": the key 'seed' stands there twice; remove one."),
        ('{"name": "mug", "sed": 1}', " (mug): unknown key 'sed'; perhaps you meant seed."),
    ],
)
def test_a_json_line_is_refused_with_its_number(reason, line, message):
    good = '{"name": "cup", "instance_dir": "cup"}'
    refusal = reason(f"{good}\n\n{line}\n", name="subjects.jsonl")
    assert refusal.startswith("subjects.jsonl, line 3")
    assert message in refusal


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"subjects": [{"instance_dir": "a", "instance_prompt": "a sks"}]}, "data.subjects are several subjects of"),
        ({"validation_dir": "held-out"}, "--data.validation-dir holds photos of one subject"),
    ],
)
def test_a_program_of_particular_subjects_is_refused(reason, data, message):
    assert reason(f"- {{{ENTRY}}}", configure(data=data)).startswith(message)


@pytest.mark.parametrize("path", ["gs://bucket/subjects.yaml", "missing.yaml"])
def test_a_manifest_that_is_no_local_file_is_named(path):
    with pytest.raises(UserError, match=path):
        read_manifest(path, PROGRAM)
