"""Images, settings and run folders that cannot be used: one sentence, and nothing of the user's touched."""

from pathlib import Path

import pytest

from tests.cli.arguments import CLASS, SHORT, contents, train

# Images


def test_no_instance_folder_names_the_flag(refused):
    assert "--data.instance-dir" in refused("train", *SHORT, *CLASS)


def test_a_missing_instance_folder_is_named_with_its_flag(refused, tmp_path):
    error = refused(*train(tmp_path / "gone"))
    assert "--data.instance-dir" in error
    assert "gone is not a folder" in error
    assert not (tmp_path / "runs").exists()


def test_an_instance_folder_without_images_is_named(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    error = refused(*train(tmp_path / "empty"))
    assert "--data.instance-dir" in error
    assert "empty holds no image" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("damage", ["text", "truncated"])
def test_an_undecodable_image_is_named(refused, dog, damage):
    content = (dog / "1.png").read_bytes()
    (dog / "1.png").write_bytes(b"I am no image" if damage == "text" else content[: len(content) // 2])
    before = contents(dog)
    assert "1.png cannot be decoded" in refused(*train(dog))
    assert contents(dog) == before


def test_a_caption_for_a_missing_image_is_named(refused, dog):
    (dog / "metadata.jsonl").write_text('{"file_name": "7.png", "text": "a dog"}\n')
    assert "7.png does not exist" in refused(*train(dog))


def test_one_folder_for_subject_and_class_is_refused(refused, dog):
    before = contents(dog)
    error = refused(*train(dog, "--data.class-dir", dog.parent / "." / "dog"))
    assert "--data.instance-dir" in error
    assert "--data.class-dir" in error
    assert contents(dog) == before


def test_class_images_of_another_prompt_are_refused(refused, dog, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"settings": {"prompt": "a bird"}, "images": {}}')
    before = contents(folder)
    assert "--data.class-dir" in refused(*train(dog, "--data.class-dir", folder))
    assert contents(folder) == before


# Settings


def test_an_empty_instance_prompt_is_refused(refused, dog):
    assert "--data.instance-prompt is missing" in refused(*train(dog, "--data.instance-prompt", " "))


@pytest.mark.parametrize("flags", [(), ("--data.class-prompt", "")])
def test_the_prior_needs_a_class_prompt(refused, dog, flags):
    error = refused("train", "--data.instance-dir", dog, *SHORT, *flags)
    assert "--data.class-prompt" in error
    assert "--prior.method output-preservation" in error


def test_a_resolution_that_the_model_does_not_divide_comes_with_one_that_it_does(refused, dog):
    assert "--data.resolution 100 is not a multiple of 16" in refused(*train(dog, "--data.resolution", "100"))


def test_a_batch_that_accumulation_does_not_divide_is_refused(refused, dog):
    error = refused(*train(dog, "--train.batch-size", "3", "--train.gradient-accumulation-steps", "2"))
    assert "--train.batch-size 3" in error
    assert "--train.gradient-accumulation-steps 2" in error


@pytest.mark.parametrize("name", ["--prior.steps", "--validation.steps"])
def test_more_sampling_steps_than_the_schedule_has_are_refused_with_their_flag(refused, dog, name):
    assert f"{name} 1001" in refused(*train(dog, name, "1001"))


def test_a_mesh_that_does_not_fit_the_devices_is_refused(refused, dog):
    assert "--mesh.fsdp 3" in refused(*train(dog, "--mesh.fsdp", "3"))


# Run folders


def test_a_run_folder_of_another_configuration_names_the_difference(refused, dog, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("model: demo\nseed: 7\n")
    (run / "checkpoints" / "5").mkdir(parents=True)
    before = contents(run)
    error = refused(*train(dog, "--run-dir", run))
    assert "--seed 7" in error
    assert "--run-dir" in error
    assert contents(run) == before


def test_a_folder_that_is_no_run_is_left_alone(refused, dog, tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    before = contents(thesis)
    assert "thesis exists and is not a run folder" in refused(*train(dog, "--run-dir", thesis))
    assert contents(thesis) == before


def test_a_file_in_place_of_the_run_folder_is_left_alone(refused, dog, tmp_path):
    (tmp_path / "run").write_text("a file")
    assert "run exists and is not a run folder" in refused(*train(dog, "--run-dir", tmp_path / "run"))
    assert (tmp_path / "run").read_text() == "a file"


def test_the_instance_folder_is_no_run_folder(refused, dog):
    before = contents(dog)
    assert f"--run-dir {dog} is also --data.instance-dir {dog}" in refused(*train(dog, "--run-dir", dog))
    assert contents(dog) == before


def test_another_programs_configuration_is_left_alone(refused, dog, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "config.yaml").write_text("title: my site\n")
    assert "unknown key 'title'" in refused(*train(dog, "--run-dir", site))
    assert contents(site) == {"config.yaml": b"title: my site\n"}


def test_a_run_folder_below_a_file_is_refused(refused, dog, tmp_path):
    (tmp_path / "file").write_text("a file")
    assert "file/run" in refused(*train(dog, "--run-dir", tmp_path / "file" / "run"))
    assert (tmp_path / "file").read_text() == "a file"


@pytest.mark.parametrize("mistake", ["undecodable image", "too many prior steps", "model without weights"])
def test_a_refused_input_claims_no_run_folder(refused, dog, model, mistake):
    flags = {
        "undecodable image": (),
        "too many prior steps": ("--prior.steps", "1001"),
        "model without weights": ("--model", model, "--train.prior-weight", "0"),
    }
    if mistake == "undecodable image":
        (dog / "1.png").write_bytes(b"I am no image")
    if mistake == "model without weights":
        (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    refused(*train(dog, "--run-dir", "run", *flags[mistake]))
    assert not Path("run/config.yaml").exists()
