"""`jaxbooth report` of a program that trains many subjects: one page with all of them, whatever state they are in."""

import base64
import io
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from jaxbooth.cli.main import main
from jaxbooth.config.load import dump_config
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.report.report import make_report
from jaxbooth.storage.files import write_png, write_text
from tests.made_up_runs import made_up_run, photo
from tests.report_page import Page
from tests.stores import install_meanwhile

NO_PRIOR = {"prior": {"weight": 0}}


def status(name: str, state: str, **values) -> dict:
    return {"time": 1750000000.0, "name": name, "state": state, "steps": 40, **values}


def program(root: Path, names: list[str], statuses: list[dict]) -> Path:
    """Writes a program's folder without the runs of its subjects, and returns it."""
    settings = {"model": "stable-diffusion", "lora": {"rank": 8}, "data": {"resolution": 512}, "train": {"steps": 40}}
    write_text(root / "program.yaml", dump_config(Config.model_validate(settings)))
    write_text(root / "manifest.jsonl", "".join(json.dumps({"name": name}) + "\n" for name in names))
    write_text(root / "status.jsonl", "".join(json.dumps(line) + "\n" for line in statuses))
    return root


def subject(run: Path, step: int = 40, image: Image.Image | None = None) -> Path:
    """Writes what the overview reads of a run, and returns its folder."""
    write_text(run / "metrics.jsonl", f'{{"step": {step - 1}, "loss": 0.5}}\n{{"step": {step}, "loss": 0.25}}\n')
    write_text(run / "validation.jsonl", f'{{"step": {step}, "eval/drift": 0.125}}\n')
    write_png(run / "samples" / f"step_{step:06d}.png", image or Image.fromarray(photo(step, 160)), {})
    return run


def cards(page: Page) -> list[str]:
    """The text of each card or row, in order."""
    parts = re.findall(r'<(li|tr)\b[^>]* id="subject-\d+">(.*?)</\1>', page.source, re.DOTALL)
    return [" ".join(re.sub(r"<[^>]*>", " ", content).split()) for _, content in parts]


def embedded(page: Page) -> list[Image.Image]:
    """The images of a page."""
    sources = [link for link in page.links if link.startswith("data:image/webp;base64,")]
    return [Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))) for link in sources]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A program with a subject in each state."""
    states = [
        status("mug", "done", step=40),
        status("cup", "running", step=10, slot=3),
        status("jug", "failed", error="/photos/jug holds no images; put photos there."),
        status("pot", "preparing"),
    ]
    root = program(tmp_path_factory.mktemp("runs") / "kitchen", ["mug", "cup", "jug", "pot", "pan"], states)
    made_up_run(root / "mug", **NO_PRIOR)
    subject(root / "cup", 20)
    write_text(root / "mug" / "report.html", "a report")
    return root


@pytest.fixture(scope="module")
def page(root) -> Page:
    """Its overview."""
    return Page(make_report([root]))


def test_the_page_lies_in_the_programs_folder(root):
    assert make_report([root]) == root / "report.html"


def test_the_head_says_what_is_trained_and_how_many_subjects_are_in_each_state(page, root):
    assert page.headings[0] == "kitchen"
    assert "1 queued 1 preparing 1 running 1 done 1 failed" in page.text
    for words in ("base model stable-diffusion", "LoRA of rank 8", "resolution 512 px", "steps 40", str(root)):
        assert words in page.text


def test_subjects_come_in_the_manifests_order_with_state_step_and_metrics(page):
    metrics = "Loss 0.03162 Drift of the class 0.4 Subject distance 0.1"
    assert cards(page) == [
        f"mug done step 40 of 40 {metrics}",
        "cup running step 20 of 40 Loss 0.25 Drift of the class 0.125",
        "no samples yet jug failed step 0 of 40 /photos/jug holds no images; put photos there.",
        "no samples yet pot preparing step 0 of 40",
        "no samples yet pan queued step 0 of 40",
    ]


def test_the_newest_samples_are_shown_at_most_160_pixels_wide(page):
    assert page.alts == ["mug, samples of step 40", "cup, samples of step 20"]
    assert all(image.width <= 160 for image in embedded(page))


def test_a_subject_links_to_its_report_or_else_to_its_folder(page, root):
    links = [link for link in page.links if not link.startswith(("data:", "#"))]
    assert links == ["./mug/report.html", "./cup/"]
    assert all((root / link).exists() for link in links)


def test_links_lead_from_where_the_page_is(root, tmp_path):
    out = tmp_path / "pages" / "page.html"
    page = Page(make_report([root], out))
    link = next(link for link in page.links if link.endswith("report.html"))
    assert (out.parent / link).resolve() == (root / "mug" / "report.html").resolve()


def test_those_that_failed_can_be_found_from_the_top(page):
    assert "Failed: jug" in page.text
    assert "#subject-2" in page.links


def test_nothing_is_loaded_and_no_script_runs(page):
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in page.source
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b", page.source)


def test_the_page_has_the_colours_of_both_themes(page):
    assert '<meta name="color-scheme" content="light dark">' in page.source
    assert page.source.count("prefers-color-scheme: dark") == 2


def test_what_users_wrote_stays_text(tmp_path):
    name = "a <i>mug"
    root = program(tmp_path / "<b>root", [name], [status(name, "failed", error="<u>no</u> \ud800 file")])
    page = Page(make_report([root], tmp_path / "page.html"))
    assert not re.search(r"<[ibu]>", page.source)
    assert r"<u>no</u> \ud800 file" in page.text


@pytest.mark.parametrize("name", ["mug:1", "100% blue", "cup #1?", "ключ"])
def test_a_name_that_is_no_plain_url_is_linked(tmp_path, name):
    root = program(tmp_path / "root", [name], [])
    subject(root / name)
    [link] = [link for link in Page(make_report([root])).links if link.startswith("./")]
    assert unquote(link) == f"./{name}/"
    assert not set(link) & set(":#? ")


def test_beyond_three_hundred_subjects_a_table_with_smaller_images_takes_the_place_of_the_cards(tmp_path):
    names = [f"mug-{number}" for number in range(301)]
    root = program(tmp_path / "root", names, [status("mug-1", "failed", error="it has no photos.")])
    subject(root / "mug-0")
    page = Page(make_report([root]))
    assert "<table" in page.source
    assert cards(page)[:3] == ["mug-0 running 40 of 40 0.25 0.125", "mug-1 failed it has no photos. 0 of 40 – –",
                               "mug-2 queued 0 of 40 – –"]  # fmt: skip
    assert [image.width for image in embedded(page)] == [96]


def test_a_thousand_photos_fit_into_fifteen_megabytes(tmp_path):
    """Grain is the hardest to compress; one image stands for a thousand."""
    root = program(tmp_path / "root", [f"mug-{number}" for number in range(301)], [])
    before = make_report([root]).stat().st_size
    subject(root / "mug-0", image=Image.effect_noise((512, 512), 120).convert("RGB"))
    assert (make_report([root]).stat().st_size - before) * 1000 < 13e6
    assert before / 301 * 1000 < 2e6


# What is missing or damaged


def test_the_newest_samples_that_can_be_read_are_shown(tmp_path):
    root = program(tmp_path / "root", ["mug"], [status("mug", "running")])
    subject(root / "mug", 20)
    (root / "mug" / "samples" / "step_000030.png").write_bytes(b"\x89PNG cut short")
    page = Page(make_report([root]))
    assert page.alts == ["mug, samples of step 20"]
    assert "step_000030.png cannot be read." in cards(page)[0]


def test_a_subject_that_is_done_but_has_no_folder_says_so(tmp_path):
    root = program(tmp_path / "root", ["mug"], [status("mug", "done", step=40)])
    assert cards(Page(make_report([root]))) == ["no samples yet mug done step 40 of 40 It has no run folder."]


def test_a_folder_in_the_place_of_a_log_is_said_beside_its_subject_alone(tmp_path):
    root = program(tmp_path / "root", ["mug", "cup"], [])
    (root / "mug" / "metrics.jsonl").mkdir(parents=True)
    subject(root / "cup")
    damaged, whole = cards(Page(make_report([root])))
    assert "metrics.jsonl is not a file" in damaged
    assert whole == "cup running step 40 of 40 Loss 0.25 Drift of the class 0.125"


def test_without_a_status_the_folder_tells_what_is_done(tmp_path):
    root = program(tmp_path / "root", ["mug", "cup", "jug"], [])
    (subject(root / "mug") / "export").mkdir()
    subject(root / "cup")
    (root / "status.jsonl").unlink()
    page = Page(make_report([root]))
    assert "1 queued 1 running 1 done" in page.text
    assert [card.removeprefix("no samples yet ").split()[1] for card in cards(page)] == ["done", "running", "queued"]


def test_a_file_in_the_place_of_a_run_folder_is_no_folder(tmp_path):
    root = program(tmp_path / "root", ["mug"], [status("mug", "running")])
    (root / "mug").write_text("not a folder")
    assert "It has no run folder." in cards(Page(make_report([root])))[0]


def test_damaged_files_of_the_program_are_said_at_the_top(tmp_path):
    root = program(tmp_path / "root", ["mug"], [])
    (root / "program.yaml").write_text("model: [")
    (root / "status.jsonl").unlink()
    (root / "status.jsonl").mkdir()
    with (root / "manifest.jsonl").open("a") as file:
        file.write('not JSON\n{"name": "../cup"}\n')
    page = Page(make_report([root]))
    for words in (
        "program.yaml cannot be read",
        "status.jsonl is not a file",
        "left out 2 lines without a usable name",
    ):
        assert words in page.text
    assert cards(page) == ["no samples yet mug queued step 0"]


def test_an_empty_manifest_is_an_empty_page(tmp_path):
    page = Page(make_report([program(tmp_path / "root", [], [])]))
    assert "0 subjects" in page.headings


# Which folders


def test_the_run_of_one_subject_has_its_own_report(root, tmp_path):
    page = Page(make_report([root / "mug"], tmp_path / "mug.html"))
    assert page.headings[0] == "mug"
    assert "complete, 40 steps" in page.text


@pytest.mark.parametrize("others", [["kitchen/mug"], ["office"]])
def test_a_program_is_refused_beside_anything_else(root, others):
    program(root.parent / "office", [], [])
    with pytest.raises(UserError) as error:
        make_report([root, *(root.parent / other for other in others)])
    assert str(error.value) == f"{root} holds the runs of many subjects; name it alone, or name runs in it to compare."


def test_a_page_among_checkpoints_or_class_images_is_refused(root):
    for part in ("checkpoints", "class_images"):
        with pytest.raises(UserError, match="lies in a folder of the program"):
            make_report([root], root / part / "page.html")


def test_a_program_on_an_object_store(tmp_path, monkeypatch):
    install_meanwhile(tmp_path, monkeypatch)
    subject(program(tmp_path / "bucket" / "root", ["mug"], []) / "mug")
    assert str(make_report(["gs://bucket/root"])) == "gs://bucket/root/report.html"
    page = Page(tmp_path / "bucket" / "root" / "report.html")
    assert cards(page) == ["mug running step 40 of 40 Loss 0.25 Drift of the class 0.125"]


def test_the_command_prints_the_path(root, capsys):
    main(["report", str(root)])
    assert capsys.readouterr().out == f"report: {root}/report.html\n"
