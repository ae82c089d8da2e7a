"""`jaxbooth report`: what the page says, that it needs nothing else, and what is refused."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from jaxbooth.cli.main import main
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.report.report import make_report
from jaxbooth.report.settings import compare_settings
from tests.commands import jaxbooth, succeed
from tests.made_up_runs import evaluated, made_up_run, write_grid
from tests.report_page import Page
from tests.stores import install_meanwhile


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A complete, evaluated run."""
    return evaluated(made_up_run(tmp_path_factory.mktemp("runs") / "cat"))


@pytest.fixture(scope="module")
def page(run) -> Page:
    """Its report."""
    return Page(make_report([run]))


def test_the_head_says_what_was_trained_and_how_far(page, run):
    assert page.headings[0] == "cat"
    for words in ("complete, 40 steps", "base model demo", "the whole UNet", "a photo of a sks cat", str(run)):
        assert words in page.text


def test_settings_that_differ_from_the_defaults_come_with_them(page):
    assert "train.steps 40 default 1000" in page.text
    assert f"All {len(compare_settings([Config()]))} settings, resolved" in page.text
    assert "loss.snr_gamma 5 5" in page.text


def test_every_metric_has_a_chart_and_a_table(page):
    charts = ["Loss", "Instance loss", "Prior loss", "Gradient norm", "Learning rate", "Images per second"]
    validations = ["Drift of the class", "Subject distance"]
    assert [chart["title"] for chart in page.data["charts"]] == charts + validations
    assert all(title in page.headings for title in charts + validations)
    assert page.source.count('role="slider"') == len(charts + validations)
    assert "step drift of the class 0 0 40 0.4" in page.text


def test_the_loss_on_held_out_images_is_beside_the_drift_and_its_bins_come_after(tmp_path):
    run = made_up_run(tmp_path / "cat")
    names = [
        f"validation/{group}_loss{part}" for group in ("subject", "class") for part in ("", "_t750-1499", "_t0-749")
    ]
    for log, first in (("metrics.jsonl", 1), ("validation.jsonl", 0)):
        lines = [json.loads(line) for line in (run / log).read_text().splitlines()]
        lines[-1] |= dict.fromkeys(names, 0.25)
        (run / log).write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert lines[0]["step"] == first
    page = Page(make_report([run]))
    titles = [chart["title"] for chart in page.data["charts"]]
    assert titles[6:10] == ["Drift of the class", "Held-out loss, subject", "Held-out loss, class", "Subject distance"]
    assert titles[10:] == [
        f"{group}, timesteps {part}" for group in ("Class", "Subject") for part in ("0 to 749", "750 to 1499")
    ]
    sections = [heading for heading in page.headings if heading in ("At validations", "Held-out loss by timestep")]
    assert sections == ["At validations", "Held-out loss by timestep"]
    assert "step held-out loss, subject 40 0.25" in page.text


def test_samples_are_laid_out_by_prompt_with_every_step_in_the_slider(page):
    assert page.data["samples"]["steps"] == [0, 20, 40]
    rows = page.data["samples"]["rows"]
    assert [strip["prompt"] for strip in rows] == ["a photo of a sks cat", "a photo of a cat"]
    assert all([len(uris) for uris in strip["uris"]] == [2, 2] for strip in rows)
    assert "a photo of a cat, cat, step 40, image 2" in page.alts


def test_the_images_that_were_learned_from_are_there(page, run):
    assert "Training images with their captions" in page.alts
    assert f"3 class images. {run}/prior" in page.text


def test_the_evaluation_stands_beside_the_base_model(page):
    assert "CLIP-I ↑ higher is better subject fidelity 0.700 [0.680, 0.730] 0.800 [0.780, 0.830]" in page.text
    assert "+0.100 [+0.050, +0.150]" in page.text
    assert "dino: no DINO model was named" in page.text
    assert "a sks cat in the snow, base model, image 1" in page.alts


def test_time_is_what_the_metrics_say(page):
    assert "images/s, median 4 a step, median 500 ms all steps 20 s checkpoints 1 kB (step 40)" in page.text


def test_nothing_is_loaded_from_elsewhere(page):
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "default-src 'none'" in page.source
    styles = " ".join(re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    assert not re.search(r"<(link|iframe|object|embed|base)\b", page.source)


def test_what_users_wrote_stays_text(tmp_path):
    prompts = ('a </script><script>alert("1")</script> cat', "a 'quoted' & <u>underlined</u> cat")
    folder = evaluated(made_up_run(tmp_path / "<i>run", prompts=prompts))
    page = Page(make_report([folder], tmp_path / "out.html"))
    assert "<script>alert" not in page.source
    assert "<u>" not in page.source
    assert "<i>" not in page.source
    assert all(prompt in page.headings for prompt in prompts)
    assert page.data["samples"]["rows"][0]["prompt"] == prompts[0]


@pytest.mark.slow
def test_a_page_of_twenty_grids_of_512_pixels_stays_small(tmp_path):
    prompts = tuple(f"prompt {number}" for number in range(6))
    folder = made_up_run(tmp_path / "run", samples=tuple(range(0, 40, 2)), prompts=prompts, side=512)
    page = make_report([folder])
    assert 5e6 < page.stat().st_size < 20e6


def test_several_runs_say_in_what_they_differ_and_share_what_is_alike(tmp_path, run):
    plain = made_up_run(tmp_path / "plain", samples=(0, 30), train={"steps": 40}, prior={"weight": 0})
    out = make_report([run, plain])
    assert out == run.parent / "report.html"
    page = Page(out)
    assert "prior.weight 1 0 1" in page.text
    assert page.data["runs"] == ["cat", "plain"]
    assert page.data["samples"]["steps"] == [0, 20, 30, 40]
    prior = next(chart for chart in page.data["charts"] if chart["title"] == "Prior loss")
    assert [series["run"] for series in prior["series"]] == ["cat"]
    assert f"Not evaluated yet; jaxbooth evaluate {plain} evaluates it." in page.text
    assert page.alts.count("Training images with their captions") == 1


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [made_up_run(tmp_path / parent / "run", samples=()) for parent in "ab"]
    assert Page(make_report(runs)).data["runs"] == ["a/run", "b/run"]


def test_an_unfinished_run_without_samples_or_prior(tmp_path):
    folder = made_up_run(tmp_path / "run", logged=13, samples=(), train={"steps": 40}, prior={"weight": 0})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 14, "loss": 0.')
    for gone in ("validation.jsonl", "contact_sheet.png"):
        (folder / gone).unlink()
    page = Page(make_report([folder]))
    assert "at step 13 of 40" in page.text
    assert "There are no sample images yet" in page.text
    assert "No run here has class images." in page.text


def test_a_damaged_sample_grid_is_named_and_left_out(tmp_path):
    folder = made_up_run(tmp_path / "run")
    grid = folder / "samples" / "step_000020.png"
    grid.write_bytes(grid.read_bytes()[:2000])
    page = Page(make_report([folder]))
    assert f"These images cannot be read and are left out: {grid}." in page.text
    assert page.data["samples"]["steps"] == [0, 40]


def test_a_pipe_in_the_place_of_a_sample_grid_is_left_out_too(tmp_path):
    folder = made_up_run(tmp_path / "run")
    pipe = folder / "samples" / "step_000030.png"
    os.mkfifo(pipe)
    assert f"These images cannot be read and are left out: {pipe}." in Page(make_report([folder])).text


def test_prompts_that_changed_on_the_way_have_their_own_steps(tmp_path):
    folder = made_up_run(tmp_path / "run", samples=(0,))
    write_grid(folder, 20, ("another prompt",), 64)
    rows = Page(make_report([folder])).data["samples"]["rows"]
    assert {strip["prompt"]: strip["steps"] for strip in rows}["another prompt"] == [20]


def test_subjects_and_a_lora_are_described(tmp_path):
    subjects = [
        {"instance_dir": f"/{name}", "instance_prompt": f"a {name} dog", "class_prompt": "a dog", "class_dir": "/none"}
        for name in ("sks", "ohwx")
    ]
    data = {"instance_dir": None, "instance_prompt": None, "class_prompt": None, "subjects": subjects}
    page = Page(make_report([made_up_run(tmp_path / "run", data=data, lora={"rank": 8})]))
    assert "LoRA of rank 8" in page.text
    assert "a sks dog, and 1 more" in page.text
    assert "instance_prompt: a ohwx dog" in page.text


def test_the_best_checkpoint_and_an_early_end_are_said(tmp_path):
    folder = made_up_run(tmp_path / "run", logged=20)
    (folder / "selection.json").write_text('{"best_step": 10, "stopped_at": 20}')
    page = Page(make_report([folder]))
    assert "ended early at step 20 of 40" in page.text
    assert "best checkpoint step 10" in page.text


def test_a_run_on_an_object_store(tmp_path, monkeypatch):
    install_meanwhile(tmp_path, monkeypatch)
    made_up_run(tmp_path / "bucket" / "run", prior={"seed": 1})
    out = make_report(["gs://bucket/run"])
    assert str(out) == "gs://bucket/run/report.html"
    assert "complete, 40 steps" in Page(tmp_path / "bucket" / "run" / "report.html").text


def test_an_earlier_report_is_replaced_and_nothing_else(run, tmp_path):
    out = tmp_path / "own.html"
    make_report([run], out)
    make_report([run], out)
    out.write_text("<p>my own page</p>")
    with pytest.raises(UserError, match=r"own\.html exists already and is not a report of jaxbooth"):
        make_report([run], out)
    assert out.read_text() == "<p>my own page</p>"


def refusal(*runs: Path, **settings) -> str:
    with pytest.raises(UserError) as error:
        make_report(runs, **settings)
    return str(error.value)


def test_what_is_no_run_is_refused(run, tmp_path):
    assert refusal(tmp_path) == f"{tmp_path} is not a run folder (it has no config.yaml)."
    assert refusal() == "name at least one run folder."
    assert refusal(run, run) == f"{run} is named twice; name each run once."
    assert refusal(*[run] * 9) == "9 runs are too many to tell apart; name at most 8."
    assert refusal(run, out=tmp_path) == f"--out {tmp_path} is a folder; name a file."


def test_a_run_without_metrics_is_refused(tmp_path):
    folder = made_up_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text("")
    assert refusal(folder) == f"{folder} has no metrics yet; run `jaxbooth train` until its first steps are done."


def test_an_evaluation_of_another_kind_is_refused(tmp_path):
    folder = evaluated(made_up_run(tmp_path / "run"))
    path = folder / "evaluation" / "evaluation.json"
    for content, words in (("[]", "is not a JSON object"), ('{"format": 3}', "is not an evaluation of format 2")):
        path.write_text(content)
        assert refusal(folder).startswith(f"{path} {words}")


def test_a_missing_library_is_one_sentence(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    assert refusal(run) == "the charts of a report need a library: pip install 'jaxbooth[report]'."


def test_no_device_is_started(run, tmp_path):
    code = "import os; os.environ['JAX_PLATFORMS'] = 'none'; from jaxbooth.cli.main import main; main()"
    assert succeed(jaxbooth("report", run, "--out", tmp_path / "page.html", code=code)).startswith("report: ")


def test_the_command_prints_the_path(run, tmp_path, capsys):
    main(["report", str(run), "--out", str(tmp_path / "a" / "page.html")])
    assert capsys.readouterr().out == f"report: {tmp_path}/a/page.html\n"
    assert (tmp_path / "a" / "page.html").exists()
