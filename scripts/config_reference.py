"""docs/configuration.md: every key of a run and every flag of the commands, as the schema and its docstrings say.

python scripts/config_reference.py            writes the file
python scripts/config_reference.py --check    exits with 1 if the file is not what the schema says
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jaxbooth.cli.evaluate import EvaluateArguments
from jaxbooth.cli.export import ExportArguments
from jaxbooth.cli.lora import LoraExtractArguments, LoraMergeArguments, LoraResizeArguments
from jaxbooth.cli.plan import PlanArguments
from jaxbooth.cli.report import ReportArguments
from jaxbooth.cli.sample import SampleArguments
from jaxbooth.cli.train_many import ManyArguments
from jaxbooth.config.run_config import FREE_SECTIONS, FREE_TO_CHANGE, Config
from jaxbooth.config.schema import Subject
from jaxbooth.config.section import Section, flag
from jaxbooth.storage.files import write_text

OUT = Path(__file__).parents[1] / "docs" / "configuration.md"
NAMES = {bool: "yes or no", int: "whole number", float: "number", str: "text", Path: "path"}
SIGNS = {Gt: (">", "gt"), Ge: (">=", "ge"), Lt: ("<", "lt"), Le: ("<=", "le")}
OWN = ("distributed",)  # belongs to a process and is no part of the run
HEAD = """\
# Configuration

*Made from the schema by `python scripts/config_reference.py`; do not edit it by hand.*

A setting has the value of its flag. Without a flag, it has the value in the YAML file (or shipped configuration) named
first on the command line, and without that the default listed here. A flag is the dotted key with dashes:
`train.batch_size` in a file is `--train.batch-size`. Unknown keys, values out of range and settings that would have no
effect are errors.

- **Yes or no**: `--train.text-encoder` turns it on, `--train.no-text-encoder` turns it off. In a file: `true`, `false`.
- **None**: `--train.learning-rate None` unsets the value in a file. In a file: `null`.
- **Several values**: `--validation.prompts "a sks dog" "a dog"`. In a file: a list.
- A star `*` marks what may change when a run is resumed; a change of anything else is refused. `train.steps` may not
  change with `--text.token-training pivotal`, where it decides which steps belong to the placeholder tokens.

A file contains what differs from the defaults, by section:

```yaml
model: stable-diffusion-v1-5/stable-diffusion-v1-5
run_dir: runs/dogs
data:
  resolution: 512
  subjects:            # instead of instance_dir, the prompts and the other folders
    - instance_dir: photos/rex
      instance_prompt: a photo of sks dog
      class_prompt: a photo of dog
    - instance_dir: photos/mia
      instance_prompt: a photo of ohwx dog
      class_prompt: a photo of dog
      weight: 1.5
train: {steps: 1600, batch_size: 2, learning_rate: 2.0e-6, remat: blocks}
validation:
  prompts:
    - a photo of sks dog
    - a photo of ohwx dog
    - a photo of dog
```

`jaxbooth train dogs.yaml --train.steps 2000` reads the file and changes one value. RUN/config.yaml is such a file, with
every key.
"""


def in_words(annotation: Any, limits: Iterable[Any] = ()) -> str:
    """Says what values a type with its limits takes."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return in_words(inner[0], (*limits, *inner[1:]))
    if origin in (Union, UnionType):
        kinds = [in_words(kind, limits) for kind in inner if kind is not NoneType]
        return ", ".join(kinds) + (" or `None`" if NoneType in inner else "")
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin is tuple:
        return "any number of texts"
    signs = [(*SIGNS[type(limit)], limit) for limit in limits if type(limit) in SIGNS]
    bounds = [f"{sign} {getattr(limit, attribute)}" for sign, attribute, limit in signs]
    return " ".join([NAMES[annotation], " and ".join(bounds)]).strip()


def default_of(field: FieldInfo) -> str:
    """Returns a default as it is typed."""
    if field.is_required():
        return "*required*"
    if isinstance(field.default, bool):
        return "yes" if field.default else "no"
    return "none" if field.default == () else f"`{field.default}`" if field.default != "" else "empty"


def is_free(key: str) -> bool:
    """Whether a dotted key may change when a run is continued."""
    return key in FREE_TO_CHANGE or key.split(".")[0] in (*FREE_SECTIONS, *OWN)


def table(head: str, rows: Iterable[tuple[str, str, str, str]]) -> list[str]:
    """Returns the lines of a Markdown table."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return [f"| {head} | value | default | what it does |", "|---|---|---|---|", *lines, ""]


def rows(kind: type[BaseModel], name: Any, keys: Iterable[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yields a table's rows; `name` turns a key into what is typed."""
    for key in keys:
        field = kind.model_fields[key]
        help_text = next((given.help for given in field.metadata if getattr(given, "help", None)), None)
        meaning = (help_text or field.description or "").replace("<", r"\<")  # `<` would begin an HTML tag
        yield name(key), in_words(field.annotation, field.metadata), default_of(field), meaning


def section(title: str, kind: type[BaseModel], prefix: str, text: str) -> list[str]:
    """Returns a section of the run's configuration; nested ones and lists of subjects are left out."""

    def name(key: str) -> str:
        return f"`{flag(prefix + key)}`" + (r" \*" if is_free(prefix + key) else "")

    nested = {key for key, field in kind.model_fields.items() if isinstance(field.default, Section)} | {"subjects"}
    keys = [key for key in kind.model_fields if key not in nested]
    return [f"## {title}", "", text, "", *table("flag", rows(kind, name, keys))]


def command(title: str, kind: type[BaseModel], skip: Iterable[str] = ()) -> list[str]:
    """Returns the flags of a command."""
    positional = next(
        (key for key in kind.model_fields if key in ("source", "run", "runs", "files", "file", "model")), ""
    )

    def name(key: str) -> str:
        given = kind.model_fields[key].metadata
        other = next((found.name for found in given if getattr(found, "name", None)), key)
        return f"*{key.upper()}*" if key == positional else f"`{flag(other)}`"

    text = " ".join((kind.__doc__ or "").split())
    keys = [key for key in kind.model_fields if key not in skip]
    return [f"### {title}", "", text, "", *table("flag", rows(kind, name, keys))]


def reference() -> str:
    """Returns the whole page."""
    lines = [HEAD, *section("The run", Config, "", "Keys outside of any section.")]
    for key, field in Config.model_fields.items():
        if isinstance(field.default, Section):
            kind = type(field.default)
            lines += section(key, kind, f"{key}.", " ".join((kind.__doc__ or "").split()))
            if key == "data":
                text = "In a file only: a list under `data.subjects`, as above. Each entry has these keys."
                keys = rows(Subject, "`{}`".format, Subject.model_fields)
                lines += ["### data.subjects", "", text, "", *table("key", keys)]
    lines += ["## Flags of the other commands", ""]
    lines += command("jaxbooth train-many MANIFEST [CONFIG]", ManyArguments, skip=Config.model_fields)
    lines += command("jaxbooth sample RUN\\|MODEL", SampleArguments)
    lines += command("jaxbooth export RUN", ExportArguments)
    lines += command("jaxbooth evaluate RUN", EvaluateArguments)
    lines += command("jaxbooth report RUN [RUN ...]", ReportArguments)
    lines += command("jaxbooth lora merge FILE[:WEIGHT] ...", LoraMergeArguments)
    lines += command("jaxbooth lora resize FILE", LoraResizeArguments)
    lines += command("jaxbooth lora extract MODEL", LoraExtractArguments)
    lines += command("jaxbooth plan [CONFIG]", PlanArguments, skip=Config.model_fields)
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is stale")
    if not parser.parse_args().check:
        write_text(OUT, reference())
    elif not OUT.exists() or OUT.read_text() != reference():
        sys.exit(f"{OUT} is not what the schema says; run python scripts/config_reference.py.")


if __name__ == "__main__":
    main()
