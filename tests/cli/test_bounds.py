"""Work without bounds is refused before anything is read, in one sentence with the flag and the limit."""

from pathlib import Path

import pytest

from jaxbooth.config.schema import Subject
from jaxbooth.errors import UserError
from jaxbooth.evaluation.evaluate import check_image_count, evaluation_prompts
from jaxbooth.evaluation.models import parse_model
from jaxbooth.metrics.prompts import cells
from tests.cli.arguments import CLASS, SHORT, train

SUBJECT = ("--data.instance-dir", "demo", *SHORT, *CLASS)


@pytest.mark.parametrize(
    ("flag", "value", "limit"),
    [
        ("--seed", 2**63, 2**63 - 1),
        ("--prior.seed", 2**64 + 7, 2**63 - 1),
        ("--train.steps", 10**12, 10**8),
        ("--train.batch-size", 10**9, 65_536),
        ("--prior.rows", 10**6, 65_536),
        ("--train.gradient-accumulation-steps", 10**7, 65_536),
        ("--train.steps-per-dispatch", 10**9, 10_000),
        ("--train.max-checkpoints", 10**12, 10**9),
        ("--data.random-crops", 10**12, 256),
        ("--data.resolution", 10**6, 8192),
        ("--data.num-class-images", 10**9, 100_000),
        ("--prior.sample-batch-size", 10**6, 1024),
        ("--prior.steps", 10**7, 1000),
        ("--prior.guidance-scale", 1e308, 100),
        ("--validation.guidance-scale", 100.5, 100),
        ("--validation.images-per-prompt", 10**7, 1000),
        ("--lora.rank", 10**6, 16_384),
        ("--text.max-token-chunks", 10**7, 64),
        ("--text.vectors-per-token", 10**6, 75),
        ("--mesh.fsdp", 10**9, 2**20),
        ("--distributed.num-processes", 10**9, 2**20),
        ("--train.learning-rate", 1e300, 1000),
        ("--train.b2", 0.99999999, 0.999999),
        ("--train.ema-decay", 0.99999999, 0.999999),
    ],
)
def test_a_number_beyond_its_limit_names_the_flag_and_the_limit(refused, flag, value, limit):
    error = refused("train", *SUBJECT, flag, str(value))
    assert error.startswith(f"{flag} {value} is not valid: input should be less than or equal to {limit}")


def test_plan_has_the_same_limits(refused):
    error = refused("plan", *SUBJECT, "--train.batch-size", str(10**9), "--topology", "v5e:4x4")
    assert error.startswith("--train.batch-size 1000000000 is not valid: input should be less than or equal to 65536")


@pytest.mark.parametrize("value", ["inf", "1e308", "nan", "0", "-1", "100.5"])
@pytest.mark.parametrize("command", [("sample", "demo", "--prompt", "a cat"), ("evaluate", "runs/none")])
def test_guidance_that_makes_flat_images_is_refused(refused, command, value):
    error = refused(*command, "--guidance-scale", value)
    assert error.startswith("--guidance-scale")
    assert "is not valid: input should be" in error


@pytest.mark.parametrize("flag", ["--prior.guidance-scale", "--validation.guidance-scale", "--loss.noise-offset"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_number_of_a_run_is_finite(refused, flag, value):
    assert refused("train", *SUBJECT, flag, value) == f"{flag} {value} is not valid: input should be a finite number."


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--num", 10**12), ("--max-token-chunks", 10**7), ("--steps", 10**6), ("--width", 10**6), ("--seed", -1)],
)
def test_sample_refuses_what_it_could_not_finish(refused, tmp_path, flag, value):
    error = refused("sample", "demo", "--prompt", "a cat", "--out", tmp_path / "out", flag, str(value))
    assert error.startswith(f"{flag} {value} is not valid")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--images-per-prompt", "--num-class-images"])
def test_evaluate_refuses_what_it_could_not_finish(refused, flag):
    assert refused("evaluate", "runs/none", flag, str(10**12)).startswith(f"{flag} {10**12} is not valid")


def test_an_evaluation_of_more_images_than_fit_into_memory_is_refused():
    subject = Subject(instance_dir=Path("dog"), instance_prompt="a sks dog", class_prompt="a dog")
    images = cells(evaluation_prompts([subject], "auto"), 1000, 10)
    with pytest.raises(UserError, match=r"^25,010 images of each model are too many, and 20,000 is the most; lower"):
        check_image_count(len(images))


def test_more_rows_than_can_be_counted_are_refused(refused):
    error = refused("train", *SUBJECT, "--train.steps", str(10**8), "--train.batch-size", "64")
    assert "--train.steps 100000000 of 64 + 64 rows are 12,800,000,000 rows" in error


def test_a_validation_of_too_many_images_is_refused(refused):
    error = refused("train", *SUBJECT, "--validation.images-per-prompt", "400")
    assert error.startswith("--validation.images-per-prompt 400 makes 1200 images at a time, and 1000 is the most")


def test_an_evaluation_of_too_many_images_is_refused(refused):
    error = refused("train", *SUBJECT, "--evaluation.every", "1", "--evaluation.num-class-images", "999")
    assert error.startswith("an evaluation of 1009 images at a time is too large, and 1000 is the most")


def test_a_rank_larger_than_every_adapted_layer_names_the_largest(refused, dog, tmp_path):
    error = refused(*train(dog, "--lora.rank", "16000", "--run-dir", tmp_path / "run"))
    assert error.startswith("--lora.rank 16000 is more than any adapted layer of this model has; set ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--resolution", "--height", "--width"])
def test_sample_refuses_a_side_far_beyond_the_models(refused, tmp_path, flag):
    error = refused("sample", "demo", "--prompt", "a cat", "--out", tmp_path / "out", flag, "8192")
    assert error.endswith("8192 is far beyond this model's 64 px; 512 is the most.")
    assert list(tmp_path.rglob("*.png")) == []


def test_a_training_far_beyond_the_models_resolution_is_refused(refused, dog, tmp_path):
    argv = [argument for argument in train(dog, "--run-dir", tmp_path / "run") if argument != "--data.resolution"]
    argv.remove("64")
    error = refused(*argv, "--data.resolution", "4096")
    assert error == "--data.resolution 4096 is far beyond this model's 64 px; 512 is the most."


def test_a_port_or_a_step_of_thousands_of_digits_is_refused(refused):
    digits = "9" * 5000
    place = ("--distributed.num-processes", "2", "--distributed.process-id", "0")
    error = refused("train", *SUBJECT, "--distributed.coordinator", f"host:{digits}", *place)
    assert error.endswith("is not HOST:PORT, such as 10.0.0.2:8476.")
    with pytest.raises(UserError, match="no such run"):
        parse_model(f"runs/none@{10**12}")


def test_a_prompt_that_is_no_text_is_refused(refused):
    error = refused("sample", "demo", "--prompt", "a caf\udce9")
    assert error.startswith(r"the argument 'a caf\udce9' is not UTF-8; set the terminal to UTF-8")


def test_a_prompt_of_a_megabyte_is_refused_in_one_short_sentence(refused):
    error = refused("sample", "demo", "--prompt", "x" * 10**6)
    assert error.startswith("--prompt 'xxxx")
    assert error.endswith("at most 10000 characters.")
    assert len(error) < 500
