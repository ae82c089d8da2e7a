"""What is taken away from a run in `jaxbooth ui`: downloads, zips, the report; and what no path leads to."""

import io
import zipfile
from pathlib import Path

import pytest

from jaxbooth.export.export import FORMATS
from jaxbooth.ui.pages.results import WHAT_IT_IS
from tests.made_up_runs import made_up_run
from tests.ui_server import UiServer, ui_server

LORA = b"weights of the LoRA"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> UiServer:
    """A server with two finished runs, one of them exported by the page."""
    folder = tmp_path_factory.mktemp("all")
    (folder / "secret.txt").write_text("a secret")
    for name in ("dog", "a cat"):
        made_up_run(folder / "runs" / name, lora={"rank": 4})
    write_export(folder / "runs" / "dog", "lora-40", {"dog.safetensors": LORA, "dog_comfyui.safetensors": b"others"})
    write_export(folder / "runs" / "dog", "embeddings-40", {"learned_embeds.safetensors": b"tokens"})
    with ui_server(folder / "runs") as running:
        yield running


def write_export(run: Path, name: str, files: dict[str, bytes]) -> None:
    """Writes what a job has exported."""
    folder = run / "exports" / name / run.name
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)


def test_an_export_of_several_files_is_a_zip(server):
    answer = server.get("/runs/dog/exports/lora/40")
    assert answer.headers["content-disposition"] == 'attachment; filename="dog.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["dog/dog.safetensors", "dog/dog_comfyui.safetensors"]
        assert archive.read("dog/dog.safetensors") == LORA


def test_an_export_of_one_file_is_that_file(server):
    answer = server.get("/runs/dog/exports/embeddings/40")
    assert answer.body == b"tokens"
    assert answer.headers["content-disposition"] == 'attachment; filename="learned_embeds.safetensors"'


def test_all_sample_grids_are_a_zip(server):
    with zipfile.ZipFile(io.BytesIO(server.get("/runs/a%20cat/samples.zip").body)) as archive:
        assert archive.namelist() == [f"a cat/samples/step_{step:06d}.png" for step in (0, 20, 40)]
        kept = (server.roots.runs / "a cat" / "samples" / "step_000020.png").read_bytes()
        assert archive.read("a cat/samples/step_000020.png") == kept


def test_the_formats_that_hold_a_lora_are_offered_and_the_finished_one_is_a_link(server):
    page = server.get("/runs/dog/results").text
    assert [name in page for name in ("diffusers", "single-file", '"format": "lora"')] == [True, True, False]
    assert 'href="/runs/dog/exports/lora/40"' in page
    assert "lokr" not in page


def test_every_format_is_described():
    assert set(WHAT_IT_IS) == set(FORMATS)


def test_an_export_waits_in_the_queue_for_no_device(server):
    made_up_run(server.roots.runs / "mug", lora={"rank": 4})
    answer = server.post("/runs/mug/exports", {"format": "lora", "step": 40})
    assert answer.status == 200
    job = (server.roots.runs / "mug" / "jobs" / "export-lora-40.json").read_text()
    assert '"needs_device": false' in job
    out = server.roots.runs / "mug" / "exports" / "lora-40" / "mug"
    assert str(out) in job


PATHS = [
    "/runs/..", "/runs/%2e%2e/samples.zip", "/runs/dog/exports/lora/41", "/runs/dog/exports/../40",
    "/runs/dog/exports/%2e%2e/40", "/runs/dog/exports/lora/%2e%2e", "/runs/dog/exports/lora/40%2f..",
    "/runs/dog/exports/secret/40", "/runs/dog%2f..%2fdog/samples.zip", "/runs/dog%00/samples.zip",
    "/runs/.jaxbooth-ui/samples.zip", "/runs//samples.zip", "/static/..%2fapp.py", "/static/%2e%2e/app.py",
    "/static/..", "/runs/nobody/results", "/runs/dog/results?step=99", "/runs/dog/results?step=-1",
    "/runs/dog/results?step=4e1", "/runs/dog/results?step=" + "9" * 500, "/events?run=..", "/events?run=/etc",
    "/compare?run=..", "/compare?run=../secret.txt", "/compare/report", "/runs/dog/exports/lora/٤٠",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out(server, path):
    answer = server.get(path.replace("٤٠", "%D9%A4%D9%A0"))
    assert answer.status == 404
    assert b"a secret" not in answer.body


def test_symlinks_do_not_lead_out_either(server):
    root = server.roots.runs
    secret = root.parent / "secret.txt"
    (root / "linked").symlink_to(root.parent)
    made_up_run(root / "trap", lora={"rank": 4})
    (root / "trap" / "exports").mkdir()
    (root / "trap" / "exports" / "lora-40").symlink_to(root.parent)
    assert server.get("/runs/linked/results").status == 404
    assert server.get("/runs/trap/exports/lora/40").status == 404
    write_export(root / "trap", "diffusers-40", {"a.txt": b"a", "b.txt": b"b"})
    (root / "trap" / "exports" / "diffusers-40" / "trap" / "c.txt").symlink_to(secret)
    (root / "trap" / "samples" / "step_000050.png").symlink_to(secret)
    for path in ("/runs/trap/exports/diffusers/40", "/runs/trap/samples.zip"):
        assert b"a secret" not in server.get(path).body


@pytest.mark.parametrize("form", [{"format": "lokr"}, {"format": "../x"}, {"format": ""}])
def test_a_format_that_a_run_does_not_have_is_refused(server, form):
    answer = server.post("/runs/dog/exports", {"step": 40} | form)
    assert answer.status == 422
    assert "dog cannot be exported as" in answer.text


def test_runs_are_compared_in_a_report_that_cannot_reach_the_server(server):
    page = server.get("/compare?run=dog&run=a%20cat").text
    assert 'src="/compare/report?run=dog&amp;run=a+cat"' in page
    report = server.get("/compare/report?run=dog&run=a+cat")
    assert report.headers["content-security-policy"].startswith("sandbox allow-scripts; default-src 'none'")
    assert "allow-same-origin" not in report.headers["content-security-policy"]
    assert b"jaxbooth report" in report.body
    assert list((server.roots.server / "reports").iterdir()) != []


def test_a_report_is_made_again_when_a_run_has_changed(server):
    made_up_run(server.roots.runs / "grows", steps=40, logged=20)
    assert b"at step 20 of 40" in server.get("/compare/report?run=grows").body
    made_up_run(server.roots.runs / "grows", steps=40)
    assert b"complete, 40 steps" in server.get("/compare/report?run=grows").body


def test_a_prompt_cannot_end_its_script_or_tag(server):
    prompts = ("</script><img src=x onerror=alert(1)>", "a cat")
    made_up_run(server.roots.runs / "evil", prompts=prompts)
    for path in ("/", "/compare?run=evil", "/runs/evil/results"):
        assert b"<img src=x" not in server.get(path).body
