"""A run that is not started yet: what the form says becomes a configuration, by the code that checks the flags."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxbooth.assets import DEMO_SUBJECT
from jaxbooth.config.load import reset_dependent_keys, with_overrides
from jaxbooth.config.rules import check_config
from jaxbooth.config.run_config import EMBEDDED_SUBJECT, Config, resolve_paths
from jaxbooth.config.section import flag, flatten
from jaxbooth.console.messages import collect_warnings
from jaxbooth.errors import UserError, printable
from jaxbooth.runs.overlap import check_run_folders, class_folders, instance_folders, model_paths
from jaxbooth.storage.paths import is_within
from jaxbooth.ui.fields import fields_by_key
from jaxbooth.ui.roots import NAME, Roots
from jaxbooth.ui.starts import Start, find_start

FOLDER = "folder"  # the choice of a folder that is typed
Form = Mapping[str, Sequence[str]]
IDENTIFIER = "sks"  # rare, and one token for CLIP
TOKEN = "<sks>"
RANK = "16"
# What the form itself says of these keys: by the choice of photos, of a base model and of a name.
OWN_KEYS = ("model", "run_dir", "data.instance_dir")
PROMPTS = ("data.instance_prompt", "data.class_prompt")
LORA_KEYS = ("lora.rank", "lora.kind")
MAX_NAME = 60  # characters of a run's name that is made of another one
RUN_NAMES = 1000


@dataclass(frozen=True)
class Draft:
    """What the form says.

    Attributes:
        start: what it is based on.
        base: the configuration of that, as far as it suits the chosen model and photos.
        trained: whole, lora or tokens.
        overrides: dotted key -> what is set over `base`.
        config: all of it; where it is not valid, `base`.
        problem: why it cannot be trained so, a sentence.
        problem_keys: the keys that it is about.
        missing: what else is needed, in a few words each.
        warnings: sentences.
    """

    start: Start
    base: Config
    trained: str
    name: str
    overrides: dict[str, Any]
    config: Config
    problem: str = ""
    missing: tuple[str, ...] = ()
    problem_keys: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def one(form: Form, name: str, default: str = "") -> str:
    """Returns a form's value of a name."""
    values = form.get(name) or [default]
    return values[-1].strip()


def read_draft(form: Form, roots: Roots, photos: Path | None, base_name: str = "base") -> Draft:
    """Reads the form.

    Args:
        photos: the folder that is chosen; None: none yet.
        base_name: the control that says what the run is based on.

    Raises:
        NotFound: it is based on a run that is gone.
    """
    start = find_start(one(form, base_name), one(form, "k.model"), roots)
    given = {} if start.model is None else {"model": start.model}
    given |= {} if photos is None else {"data.instance_dir": str(photos)}
    given = {key: value for key, value in given.items() if differs(flatten(start.config)[key], value)}
    base = reset_dependent_keys(start.config, given)
    name = one(form, "name") or suggest_name(form, photos, roots)
    trained = one(form, "trained") or start.trained
    overrides = given | read_fields(form, base, trained) | derived_values(form, base, trained)
    overrides = {key: value for key, value in overrides.items() if differs(flatten(base)[key], value)}
    overrides["run_dir"] = str(roots.runs / name)
    draft = Draft(start, base, trained, name, overrides, base, missing=tuple(missing_parts(form, base, photos)))
    try:
        roots.new_run(name)
    except UserError as error:
        return replace(checked(draft, roots), problem=printable(str(error)), problem_keys=("run_dir",))
    return checked(draft, roots)


def read_fields(form: Form, base: Config, trained: str) -> dict[str, Any]:
    """Returns the values of the fields that are not as in the base; only those of what is trained count."""
    overrides: dict[str, Any] = {}
    values = flatten(base)
    for key, control in fields_by_key().items():
        if key in OWN_KEYS or control.name not in form or (trained != "lora" and key in LORA_KEYS):
            continue
        if key in PROMPTS and not one(form, control.name):  # as the base has it, or made of the subject's word
            continue
        texts = list(form[control.name])
        is_left_out = not control.is_optional and control.widget in ("number", "text") and not "".join(texts).strip()
        value = control.parse(texts)
        if not is_left_out and differs(values[key], value):
            overrides[key] = value
    return overrides


def differs(before: Any, text: Any) -> bool:
    """Whether a value of a field is another one than a value of the schema; 1 and 1.0 are the same number."""
    if isinstance(before, bool) or before is None or text is None:
        return before != text
    if isinstance(before, int | float) and isinstance(text, str):
        try:
            return float(text) != before
        except ValueError:
            return True
    if isinstance(before, tuple) and before and hasattr(before[0], "model_dump"):
        return [item.model_dump(mode="json", exclude_defaults=True) for item in before] != text
    return before != text if isinstance(before, tuple) else str(before) != str(text)


def derived_values(form: Form, base: Config, trained: str) -> dict[str, Any]:
    """Returns what follows from the choice of what is trained, and prompts made of the subject's word."""
    derived: dict[str, Any] = {}
    if trained == "lora" and not one(form, "k.lora.rank"):
        derived["lora.rank"] = base.lora.rank or RANK
    if trained != "lora":
        derived |= {"lora.rank": None, "lora.kind": "lora"}
    if trained == "tokens":
        derived["prior.method"] = ("none",)
        if not one(form, "k.text.placeholder_tokens"):
            derived["text.placeholder_tokens"] = (TOKEN,)
        if one(form, "k.text.token_training") in ("", "joint"):
            derived["text.token_training"] = "textual-inversion"
    subject, class_prompt = prompts_of(form, trained)
    if subject and not one(form, "k.data.instance_prompt") and not base.data.subjects:
        derived["data.instance_prompt"] = subject
    if class_prompt and not one(form, "k.data.class_prompt") and not base.data.subjects:
        derived["data.class_prompt"] = class_prompt
    return derived


def prompts_of(form: Form, trained: str) -> tuple[str, str]:
    """Returns the prompts of subject and class that the subject's word gives; empty without a word."""
    noun = " ".join(one(form, "noun").split())
    if not noun:
        return "", ""
    article = "an" if noun[0].lower() in "aeiou" else "a"
    tokens = one(form, "k.text.placeholder_tokens").split()
    if trained == "tokens" or tokens:
        return f"a photo of {tokens[0] if tokens else TOKEN} {noun}", f"a photo of {article} {noun}"
    return f"a photo of {one(form, 'identifier') or IDENTIFIER} {noun}", f"a photo of {article} {noun}"


def missing_parts(form: Form, base: Config, photos: Path | None) -> list[str]:
    """Returns what a run needs and the form does not have yet."""
    if base.data.subjects or one(form, "k.data.subjects"):
        return []
    has_word = one(form, "noun") or one(form, "k.data.instance_prompt") or base.data.instance_prompt
    has_own = base.data.instance_dir and one(form, "photos") != FOLDER
    missing = [] if photos or has_own else ["photos"]
    return missing if has_word else [*missing, "what they show"]


def check_inside(config: Config, roots: Roots) -> None:
    """Refuses folders and files outside of the roots, whichever key names them: a run would read or write them.

    Raises:
        UserError: the message names the flag.
    """
    for flag_name, path in (*instance_folders(config), *class_folders(config), *model_paths(config)):
        is_inside = any(is_within(path, root) for root in (roots.runs, *roots.others))
        if not is_inside and path != DEMO_SUBJECT:
            raise UserError(
                f"{flag_name} {path} lies outside of the folders that this page may use; start jaxbooth ui with "
                f"--folders {path.parent}."
            )


def checked(draft: Draft, roots: Roots) -> Draft:
    """Returns a draft with its configuration, or with the sentence that says why it has none.

    What is missing is stood in for, so that everything else is checked all the same.
    """
    stand_ins: dict[str, Any] = {}
    if "photos" in draft.missing:
        stand_ins["data.instance_dir"] = str(EMBEDDED_SUBJECT)
    if "what they show" in draft.missing:
        stand_ins |= {"data.instance_prompt": "a photo of sks subject", "data.class_prompt": "a photo of a subject"}
    values = stand_ins | {key: value for key, value in draft.overrides.items() if key not in stand_ins}
    config, problem = draft.base, ""
    with collect_warnings() as warnings:
        try:
            config = with_overrides(draft.start.config, values)
            check_config(config)
            check_run_folders(resolve_paths(config))
            check_inside(resolve_paths(config), roots)
        except UserError as error:
            problem = printable(str(error)).removeprefix("the configuration: ")
            config = config if config is not draft.base else config_of_photos(draft, values)
    keys = tuple(keys_in(problem))
    return replace(draft, config=config, problem=problem, problem_keys=keys, warnings=tuple(warnings))


def config_of_photos(draft: Draft, values: Mapping[str, Any]) -> Config:
    """Returns a configuration with what the contact sheet needs, as far as that is valid, where the rest is not."""
    about_photos = {key: value for key, value in values.items() if key == "model" or key.startswith("data.")}
    for keys in (about_photos, ("data.instance_dir", "data.instance_prompt")):
        with suppress(UserError):
            return with_overrides(draft.start.config, {key: values[key] for key in keys if key in values})
    return draft.base


def keys_in(sentence: str) -> list[str]:
    """Returns the keys that a sentence names, as flags or as in files, in its order."""
    places: list[tuple[int, str]] = []
    for key in fields_by_key():
        names = rf"(?:{re.escape(flag(key))}|{re.escape(key)})" if "." in key else re.escape(flag(key))
        match = re.search(rf"(?<![\w.-]){names}(?![\w-]|\.[a-z])", sentence)
        if match:
            places.append((match.start(), key))
    top = re.match(r"([a-z_]+) = ", sentence)  # a key without a section is a word like any other elsewhere
    return ([top[1]] if top and top[1] in fields_by_key() else []) + [key for _, key in sorted(places)]


def suggest_name(form: Form, photos: Path | None, roots: Roots) -> str:
    """Returns a name for the run that nothing has: after the subject's word or the photos' folder.

    What is created has the name that was shown, so that asking twice does not make two runs.
    """
    if one(form, "suggested"):
        return one(form, "suggested")
    run = one(form, "base").partition("run:")[2]
    source = one(form, "noun") or run or (photos.name if photos else "") or "run"
    words = re.findall(r"\w+", source)
    name = "-".join(words)[:MAX_NAME].strip("-_") or "run"
    name = name if NAME.fullmatch(name) and name != "photos" else "run"
    others = (name if number == 1 else f"{name}-{number}" for number in range(1, RUN_NAMES))
    return next((other for other in others if not (roots.runs / other).exists()), name)
