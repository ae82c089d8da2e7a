"""The manifest of `jaxbooth train-many`: the subjects that one program trains, each in a run of its own.

It is a YAML file with a list of mappings, or a .jsonl file with one JSON object a line. An entry holds what may differ
between subjects; everything else is the program's.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxbooth.config import limits
from jaxbooth.config.load import reset_dependent_keys
from jaxbooth.config.manifest_entry import CONFIG_KEYS, ManifestEntry, parse_entry, show
from jaxbooth.config.run_config import EMBEDDED_SUBJECT, AnySection, Config, resolve_path
from jaxbooth.config.schema import DataConfig
from jaxbooth.config.section import flatten
from jaxbooth.errors import UserError, short_repr
from jaxbooth.storage.paths import ascii_repr, is_utf8, local_path
from jaxbooth.storage.text import read_json_lines
from jaxbooth.storage.yaml import read_yaml_list

MAX_MANIFEST_BYTES = 16 * 2**20  # of a YAML manifest; JSON lines are read faster and may be larger
MAX_MANIFEST_VALUES = 1_000_000


class SubjectRun(NamedTuple):
    """The run of one subject.

    Attributes:
        name: also that of the run's folder.
        config: the whole configuration; its paths are the program's where the entry names none.
        where: the entry in the manifest, for messages.
    """

    name: str
    config: Config
    where: str


def read_manifest(path: str | Path, program: Config) -> list[SubjectRun]:
    """Reads the subjects of a manifest, each with its configuration.

    Relative folders of an entry are relative to the manifest's folder. A subject without a seed has the program's, so
    that it comes out as `jaxbooth train` with the same settings makes it, whichever subjects stand beside it.

    Args:
        path: a local file; .jsonl is read as JSON lines, and every other one as YAML.
        program: what all subjects share, as it was parsed, before `resolve_paths`; its `run_dir` is the folder of all
            runs.

    Raises:
        UserError: the manifest cannot be read, an entry is not valid or differs from the program in more than it may,
            or two entries have one name.
    """
    check_program(program)
    file = local_path(path)
    folder = file.absolute().parent
    if "://" in str(path) or not is_utf8(str(folder)):
        raise UserError(f"{ascii_repr(str(path))}: a manifest is read from a local folder with a UTF-8 name; copy it.")
    shared = flatten(program)
    lines: dict[str, int] = {}
    subjects: list[SubjectRun] = []
    for line, values in read_entries(file):
        entry, where = parse_entry(values, f"{path}, line {line}", shared)
        folded = entry.name.lower()  # some file systems take Mug and mug for one folder
        if folded in lines:
            raise UserError(
                f"{where}: line {lines[folded]} has that name already, and capitals are no difference; choose another."
            )
        lines[folded] = line
        subjects.append(SubjectRun(entry.name, subject_config(entry, where, folder, program), where))
    return subjects


def check_program(program: Config) -> None:
    """Refuses a program that is about particular subjects.

    Raises:
        UserError: the message names the key.
    """
    if program.data.subjects:
        raise UserError(
            "data.subjects are several subjects of one run, and train-many makes a run of each; move them to the "
            "manifest."
        )
    if program.data.validation_dir is not None:
        raise UserError("--data.validation-dir holds photos of one subject, and train-many has many; leave it out.")


def read_entries(path: Path) -> list[tuple[int, Any]]:
    """Reads the entries of a manifest, each with its line.

    Raises:
        UserError: the file cannot be read, is no list, or has no entries or too many.
    """
    is_json = path.suffix.lower() == ".jsonl"
    entries = read_json_lines(path) if is_json else read_yaml_list(path, MAX_MANIFEST_BYTES, MAX_MANIFEST_VALUES)
    if not entries:
        raise UserError(f"{path} is empty; write one entry a subject, with its name and instance_dir.")
    if len(entries) > limits.MAX_MANIFEST:
        raise UserError(f"{path} has {len(entries):,} entries, and {limits.MAX_MANIFEST:,} is the most; split it.")
    return entries


def subject_config(entry: ManifestEntry, where: str, folder: Path, program: Config) -> Config:
    """Returns the configuration of a subject's run.

    Raises:
        UserError: neither the entry nor the program has an instance prompt that is about the user's own images.
    """
    if entry.instance_dir != EMBEDDED_SUBJECT:
        program = reset_dependent_keys(program, {"data.instance_dir"})
    data = subject_data(entry, folder, program.data)
    if not (data.instance_prompt or "").strip():
        raise UserError(
            f"{where}: instance_prompt is missing; write one with a rare identifier, such as 'a photo of sks dog'."
        )
    train = replace_set(program.train, {"steps": entry.steps, "learning_rate": entry.learning_rate})
    validation = replace_set(program.validation, {"prompts": entry.validation_prompts})
    run_dir = f"{program.run_dir.rstrip('/')}/{entry.name}"
    sections = {"run_dir": run_dir, "data": data, "train": train, "validation": validation}
    return replace_set(program, {"seed": entry.seed, **sections})


def subject_data(entry: ManifestEntry, folder: Path, data: DataConfig) -> DataConfig:
    """Returns the data section of a subject's run; `folder` is the manifest's."""
    is_embedded = entry.instance_dir == EMBEDDED_SUBJECT
    has_other_class = entry.class_prompt not in (None, data.class_prompt)
    class_dir = None if has_other_class else resolve_path(data.class_dir)  # it holds images of one class
    if entry.class_dir is not None:
        class_dir = folder / local_path(entry.class_dir)
    folders = {
        "instance_dir": EMBEDDED_SUBJECT if is_embedded else folder / local_path(entry.instance_dir),
        "class_dir": class_dir,
    }
    prompts = {"instance_prompt": entry.instance_prompt, "class_prompt": entry.class_prompt}
    return replace_set(data, prompts).model_copy(update=folders)


def replace_set(section: AnySection, values: Mapping[str, Any]) -> AnySection:
    """Returns a section with those of the values that are not None."""
    return section.model_copy(update={key: value for key, value in values.items() if value is not None})


def entry_of(subject: SubjectRun) -> ManifestEntry:
    """Returns the entry that describes a subject without its program: every key that may differ is set."""
    values = flatten(subject.config)
    return ManifestEntry(name=subject.name, **{name: values[key] for name, key in CONFIG_KEYS.items()})


def dump_manifest(subjects: Sequence[SubjectRun]) -> str:
    """Returns the subjects as JSON lines, with absolute paths and everything that may differ between them.

    The same subjects give the same text, and `read_manifest` reads it to the same subjects.
    """
    entries = (entry_of(subject).model_dump(mode="json", exclude_none=True) for subject in subjects)
    return "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in entries)


def check_same_manifest(path: Path, subjects: Sequence[SubjectRun], free: Collection[str] = ()) -> None:
    """Refuses subjects that contradict those whose runs a folder already holds.

    There may be new ones, and those that are there may train for more steps.

    Args:
        path: what `dump_manifest` wrote into the folder; may be missing.
        free: names of those that may change all the same, since nothing came of them.

    Raises:
        UserError: a subject is no longer there or has changed, or the file is damaged.
    """
    if not path.exists():
        return
    entries = {subject.name: entry_of(subject) for subject in subjects}
    for line, values in read_json_lines(path):
        old, _ = parse_entry(values, f"{path}, line {line}", {})
        if old.name in free:
            continue
        if old.name not in entries:
            difference = f"{old.name} is no longer there"
        else:
            difference = first_difference(old, entries[old.name])
        if difference:
            raise UserError(f"{path} was made of another manifest: {difference}; choose another --run-dir.")


def first_difference(old: ManifestEntry, new: ManifestEntry) -> str:
    """Returns what has changed of a subject, as part of a message; empty if its run may be continued."""
    for key, before in old:
        after = getattr(new, key)
        is_continued = key == "steps" and (before or 0) < after
        if before != after and not is_continued:
            words = key.replace("_", " ")
            had = f"no {words}" if before is None else f"the {words} {show(before)}"
            return f"{old.name} had {had} and has {'none' if after is None else show(after)}"
    return ""


def take_shard(subjects: Sequence[SubjectRun], shard: str) -> list[SubjectRun]:
    """Returns share I of N of the subjects: every Nth one, from the Ith.

    Args:
        shard: "I/N", where I counts from 1.

    Raises:
        UserError: it is not of that form, or I is not one of 1 to N.
    """
    numbers = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", shard)
    share, shares = map(int, numbers.groups()) if numbers else (0, 0)
    if not 1 <= share <= shares:
        raise UserError(
            f"--shard {short_repr(shard)} is not valid: I/N is needed, such as 1/8 for the first of 8 shares."
        )
    return list(subjects[share - 1 :: shares])
