"""README and docs/ name what exists: functions, tests, files, headings, flags, commands, keys."""

import ast
import contextlib
import dataclasses
import importlib.util
import io
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from jaxbooth.cli.main import COMMANDS, USAGE, main
from jaxbooth.config.load import load_config
from jaxbooth.config.manifest import read_manifest
from jaxbooth.config.prior import PriorConfig
from jaxbooth.config.rules import check_config
from jaxbooth.data.class_images import generation_settings
from jaxbooth.diffusion.loss import OUTSIDE_MASK_LOSS, TERM_NAMES
from jaxbooth.runs.early_stopping import Selection
from jaxbooth.training.weight_anchor import WEIGHT_ANCHOR

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"(?:^    .*\n?)+", re.M)
REFERENCE = re.compile(r"\[`([\w/]+\.py)::([\w.]+)`\]\(([^)\s]+)\)")
NAMES_IN_FILE = re.compile(r"((?:`[\w.]+`(?:, | and |\s+))+)in\s+\[[\w./]+\.py\]\(([^)\s]+)\)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")
COMMAND = re.compile(r"^jaxbooth +([a-z]+)(.*)$", re.S)
# Of every command, scripts/, xpk, SLURM, kubectl and XLA.
FOREIGN = {"--help", "--kills", "--dry-run", "--gpus-per-task", "--from-literal", "--xla_gpu_deterministic_ops"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    text = FENCE.sub("", page.read_text())
    return INDENTED.sub("", text) if page.name == "README.md" else text  # elsewhere, they continue a list


def commands(page: Path) -> list[tuple[str, str]]:
    """Every `jaxbooth COMMAND ...` of a page, in blocks and in the text, with what follows the command."""
    text = page.read_text()
    blocks = [block for _, block in FENCE.findall(text)] + (INDENTED.findall(text) if page.name == "README.md" else [])
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose(page))]
    return [match.groups() for line in (*lines, *spans) if (match := COMMAND.match(line))]


def defined(path: Path) -> set[str]:
    """Names of a file's functions and classes, and `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings in links."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Command -> the flags that its help names."""
    found = {}
    for command in COMMANDS:
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown), contextlib.suppress(SystemExit):
            main([command, "--help"])
        found[command] = set(FLAG.findall(shown.getvalue())) | set(FLAG.findall(USAGE)) | {"--help"}
    return found


# Structure


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_readme_has_the_command_that_runs_the_tests():
    command = ".venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest"
    assert f"    {command}\n" in (ROOT / "README.md").read_text()
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_every_page_is_in_the_index(page):
    index = ROOT / "docs" / "README.md"
    is_part = page.name.endswith("-notes.md")  # the end of another page, which a script puts together
    assert page == index or is_part or f"]({page.name})" in index.read_text()


# Names


@pages
def test_every_function_and_test_that_is_named_exists(page):
    text = page.read_text()
    references = REFERENCE.findall(text)
    assert len(references) == text.count(".py::")
    for file, name, target in references:
        path = (page.parent / target).resolve()
        assert path.name == Path(file).name
        assert name in defined(path), f"{file}::{name}"


def test_every_name_that_a_contributor_is_sent_to_is_in_its_file():
    page = ROOT / "docs" / "CONTRIBUTING.md"
    found = NAMES_IN_FILE.findall(page.read_text())
    assert len(found) >= 10
    for names, target in found:
        code = (page.parent / target).read_text()
        for name in re.findall(r"\w+", names.replace(" and ", " ")):
            assert re.search(rf"\b{name}\b", code), f"{name} in {target}"


def test_every_equation_has_a_function_and_a_test():
    text = (ROOT / "docs" / "mathematics.md").read_text()
    tags = re.findall(r"\\tag\{(\d+)\}", text)
    assert tags == [str(number) for number in range(1, len(tags) + 1)]
    for tag in tags:
        [row] = re.findall(rf"^\| \({tag}\) \|(.*)\|(.*)\|$", text, re.M)
        assert all("../jaxbooth/" in target for _, _, target in REFERENCE.findall(row[0]))
        assert REFERENCE.search(row[0]), tag
        assert all("../tests/" in target for _, _, target in REFERENCE.findall(row[1]))
        assert REFERENCE.search(row[1]), tag


@pages
def test_every_relative_link_leads_somewhere(page):
    for target in LINK.findall(prose(page)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


# Flags and commands


@pages
def test_every_flag_in_the_text_exists(page, flags):
    known = FOREIGN.union(*flags.values())
    assert sorted(set(FLAG.findall(prose(page))) - known) == []


@pages
def test_every_command_exists_and_has_the_flags_it_is_given(page, flags):
    for command, rest in commands(page):
        assert command in COMMANDS
        assert sorted(set(FLAG.findall(rest)) - flags[command]) == [], f"jaxbooth {command}{rest}"


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_every_configuration_is_one_that_a_run_takes(page, tmp_path):
    for kind, block in FENCE.findall(page.read_text()):
        if kind == "yaml":
            (tmp_path / "run.yaml").write_text(block)
            if "- {name:" in block:
                runs = read_manifest(tmp_path / "run.yaml", load_config("sd15-lora"))
                configs = [run.config for run in runs]
            else:
                configs = [load_config(tmp_path / "run.yaml")]
            for config in configs:
                check_config(config)


def script_module(name: str) -> ModuleType:
    """Imports a program of scripts/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_reference_is_current():
    script = script_module("config_reference")
    assert script.OUT.read_text() == script.reference(), "run python scripts/config_reference.py"


def test_the_tables_of_other_trainers_flags_are_current():
    script = script_module("peer_tables")
    assert script.PAGE.read_text() == script.page(), "run python scripts/peer_tables.py"


# Keys of files


def table_keys(page: str, heading: str) -> list[str]:
    """The keys in the first column of the table under a heading of a page in docs/."""
    text = (ROOT / "docs" / page).read_text()
    part = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", part, re.M)
    return [key for cell in cells for key in re.findall(r"`([^`]+)`", cell)]


def test_the_metrics_are_those_that_a_step_logs():
    terms = ["loss", *TERM_NAMES.values(), OUTSIDE_MASK_LOSS, WEIGHT_ANCHOR]
    others = ["step", "grad_norm", "learning_rate", "images_per_second", "peak_memory"]
    assert sorted(table_keys("run-folder.md", "metrics.jsonl")) == sorted([*terms, *others])


def test_the_keys_of_the_selection_are_those_that_are_written():
    [row] = re.findall(r"^\| `selection.json` \|(.*)\|$", (ROOT / "docs" / "run-folder.md").read_text(), re.M)
    assert sorted(re.findall(r"`(\w+)`", row)) == sorted(field.name for field in dataclasses.fields(Selection))


def test_the_manifests_keys_are_those_that_are_written(base):
    written = generation_settings(base, "demo", "a cat", 64, PriorConfig())
    assert table_keys("run-folder.md", "Class images and their manifest") == [
        *(f"settings.{key}" for key in written),
        "images",
    ]


def test_the_keys_of_a_plan_are_those_that_are_printed(capsys):
    main(["plan", "demo", "--topology", "cpu:1", "--json"])
    printed = json.loads(capsys.readouterr().out)
    described = table_keys("plan.md", "plan --json")
    assert sorted(set(described) - set(printed)) == ["compiler", "estimated", "sampling"]
    assert set(printed) <= set(described)
