"""Images of an own prompt while a run trains: asked for by a file, answered by a file, and nothing else changes."""

import json
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import optax
import pytest
from PIL import Image

from jaxbooth.base.encoded_prompts import EncodedPrompts
from jaxbooth.base.sampling import ImageSampler, SamplingConfig
from jaxbooth.config.run_config import Config
from jaxbooth.data.image_grid import split_grid
from jaxbooth.distributed.stop_agreement import StopAgreement
from jaxbooth.errors import UserError
from jaxbooth.runs.metric_writer import read_metrics
from jaxbooth.runs.request_sampler import RequestSampler
from jaxbooth.runs.sample_requests import RequestFiles, SampleRequest, ask, waiting_requests
from jaxbooth.runs.validation import ValidationSampler
from jaxbooth.training.state import initial_state
from tests.commands import SHORT, read_facts, succeed, train
from tests.processes import outputs, start_all

PROMPT = "a drawing of a sks cat"


# The files


def test_a_request_waits_until_it_has_an_answer_or_an_error(tmp_path):
    first, second = ask(tmp_path, SampleRequest("a cat")), ask(tmp_path, SampleRequest("a dog", seed=3, num=2))
    assert waiting_requests(tmp_path) == [first, second]
    assert second.read() == SampleRequest("a dog", 3, 2)
    first.write_images(np.zeros((1, 64, 64, 3), np.uint8), first.read(), {"step": 5})
    second.write_error("no.")
    assert waiting_requests(tmp_path) == []


def test_a_folder_without_requests_costs_nothing(tmp_path):
    assert waiting_requests(tmp_path) == []


@pytest.mark.parametrize(("content", "problem"), [
    ("{", "is not valid JSON"),
    ("[]", "does not hold a JSON object"),
    ('{"prompt": ""}', "prompt is not valid"),
    ('{"prompt": 3}', "prompt is not valid"),
    ('{"prompt": "a cat", "num": 17}', "num is not valid"),
    ('{"prompt": "a cat", "num": "2"}', "num is not valid"),
    ('{"prompt": "a cat", "seed": -1}', "seed is not valid"),
    ('{"prompt": "a cat", "steps": 9}', "steps is not valid"),
    ('{"prompt": "\\ud800"}', "prompt is not valid"),
])  # fmt: skip
def test_a_file_that_is_no_request_says_why(content, problem, tmp_path):
    files = RequestFiles(tmp_path, "1")
    files.request.write_text(content)
    with pytest.raises(UserError, match=problem):
        files.read()


@pytest.mark.parametrize("name", ["a b.json", "..json", ".hidden.json", "x" * 65 + ".json", "1.txt"])
def test_other_files_are_no_requests(name, tmp_path):
    (tmp_path / "sample_requests").mkdir()
    (tmp_path / "sample_requests" / name).write_text('{"prompt": "a cat"}')
    assert waiting_requests(tmp_path) == []


# The answers


@pytest.fixture(scope="module")
def made(micro, micro_params, mesh):
    """The sampler of a run's grids, the state of its UNet, and what stays frozen."""
    config = Config.model_validate({
        "data": {"instance_prompt": "a sks cat", "class_prompt": "a cat", "instance_dir": "x"},
        "validation": {"images_per_prompt": 1},
    })  # fmt: skip
    image_sampler = ImageSampler(micro, mesh, SamplingConfig("dpmpp_2m", 2, 7.5, 64), 3, quiet=True)
    sampler = ValidationSampler(image_sampler, config.validation, config.subjects, 0)
    unet = {name: np.array(value) for name, value in micro_params["unet"].items()}
    return sampler, initial_state({"unet": unet}, optax.sgd(1e-4), False, mesh), micro_params


def make_requests(root: Path, made) -> RequestSampler:
    """Returns what answers in a folder, as the only process."""
    sampler, _, frozen = made
    return RequestSampler(root, sampler, frozen, lambda value: [value], StopAgreement())


def test_an_answer_holds_the_images_and_says_what_they_are(made, tmp_path):
    sampler, state, frozen = made
    files = ask(tmp_path, SampleRequest(PROMPT, seed=4, num=2))
    requests = make_requests(tmp_path, made)
    assert requests.are_waiting()
    requests.answer(state, 12)
    assert not requests.are_waiting()
    facts = read_facts(files.answer)
    assert json.loads(facts["prompts"]) == [PROMPT]
    assert (facts["seed"], facts["step"], facts["steps"]) == ("4", "12", "2")
    with Image.open(files.answer) as image:
        [row] = split_grid(image, 1, 64)
    expected = sampler.image_sampler.generate(frozen, [PROMPT] * 2, 4, [0, 1])
    np.testing.assert_array_equal(np.stack([np.asarray(each) for each in row]), expected)


def test_an_own_prompt_needs_no_other_program_than_the_grid(made, tmp_path):
    sampler, state, frozen = made
    sampler.sample(frozen)
    programs = sampler.image_sampler.program._cache_size(), sampler.image_sampler._encode._cache_size()
    for num in (1, 3, 5):
        ask(tmp_path, SampleRequest(PROMPT, num=num))
    make_requests(tmp_path, made).answer(state, 1)
    assert len(list((tmp_path / "sample_requests").glob("*.png"))) == 3
    assert (sampler.image_sampler.program._cache_size(), sampler.image_sampler._encode._cache_size()) == programs


def test_a_bad_request_gets_a_sentence_and_the_others_their_images(made, tmp_path):
    bad, good = ask(tmp_path, SampleRequest("a cat")), ask(tmp_path, SampleRequest(PROMPT))
    bad.request.write_text('{"prompt": 3}')
    make_requests(tmp_path, made).answer(made[1], 1)
    assert "prompt is not valid" in bad.error.read_text()
    assert good.answer.exists()


def test_a_prompt_that_must_be_encoded_elsewhere_is_answered_after_that_and_holds_up_nothing(made, tmp_path):
    sampler, state, frozen = made
    known = ["", "a sks cat", "a cat", *sampler.prompts]
    text = sampler.image_sampler.encode(frozen, known)
    encoded = EncodedPrompts({prompt: row for row, prompt in enumerate(known)}, text)
    image_sampler = ImageSampler(
        sampler.image_sampler.base, sampler.image_sampler.mesh, sampler.image_sampler.config, 3, True, encoded
    )
    dropped = ValidationSampler(image_sampler, Config().validation, Config.model_validate({
        "data": {"instance_prompt": "a sks cat", "class_prompt": "a cat", "instance_dir": "x"}
    }).subjects, 0)  # fmt: skip
    unknown, in_grid = ask(tmp_path, SampleRequest(PROMPT)), ask(tmp_path, SampleRequest("a sks cat"))
    with closing(RequestSampler(tmp_path, dropped, frozen, lambda value: [value], StopAgreement())) as requests:
        requests.answer(state, 1)
        assert in_grid.answer.exists()
        assert not requests.are_waiting()  # the training is not stopped while the prompt is encoded
        assert not unknown.answer.exists()
        assert requests.own_prompts.encoding.process.wait(300) == 0
        assert requests.are_waiting()
        requests.answer(state, 2)
        assert not requests.are_waiting()
    with Image.open(unknown.answer) as image:
        [[found]] = split_grid(image, 1, 64)
    [expected] = sampler.image_sampler.generate(frozen, [PROMPT], 0, [0])
    np.testing.assert_allclose(np.asarray(found, np.int16), expected, atol=1)  # embeddings that differ by rounding


def test_a_request_whose_answer_cannot_be_written_is_tried_once(made, tmp_path):
    ask(tmp_path, SampleRequest(PROMPT))
    folder = tmp_path / "sample_requests"
    requests = make_requests(tmp_path, made)
    waiting = requests._readable()
    shutil.rmtree(folder)
    folder.write_text("a file in the folder's place")
    requests.exchange = lambda _: [waiting]
    requests.answer(made[1], 1)
    assert not requests.are_waiting()


def test_a_run_that_is_to_stop_answers_nothing_more(made, tmp_path):
    files = ask(tmp_path, SampleRequest(PROMPT))
    requests = make_requests(tmp_path, made)
    requests.stop_agreement.set_last_step(3)
    requests.answer(made[1], 3)
    assert not files.answer.exists()


# The training


@pytest.mark.slow
def test_a_training_answers_at_its_next_dispatch_and_ends_as_without_the_requests(tmp_path, micro_model):
    begun, asked = tmp_path / "begun", tmp_path / "asked"
    settings = ("--model", micro_model, "--train.checkpoint-every", 4)
    succeed(train(begun, *settings, steps=4))
    shutil.copytree(begun, asked)
    config = asked / "config.yaml"
    config.write_text(config.read_text().replace(str(begun), str(asked)))
    good, bad = ask(asked, SampleRequest(PROMPT, seed=1, num=2)), ask(asked, SampleRequest("a cat"))
    bad.request.write_bytes(b"\xff")
    for folder in (begun, asked):
        succeed(train(folder, *settings, steps=10))
    assert read_facts(good.answer)["step"] == "6"  # a dispatch has two steps
    assert "is not UTF-8 text" in bad.error.read_text()
    sums = [json.loads((folder / "checkpoints/10/sums/metadata").read_text()) for folder in (begun, asked)]
    assert sums[0] == sums[1]
    lines = [
        [{key: value for key, value in line.items() if key != "images_per_second"} for line in read_metrics(path)]
        for path in (begun / "metrics.jsonl", asked / "metrics.jsonl")
    ]
    assert lines[0] == lines[1]


@pytest.mark.slow
def test_several_processes_answer_where_they_stop_together(tmp_path, micro_model):
    settings = ("--model", micro_model, "--run-dir", tmp_path / "run", "--validation.every", 1000)
    succeed(train(tmp_path / "run", *settings[:2], steps=3))
    good, bad = (ask(tmp_path / "run", SampleRequest(prompt, num=2)) for prompt in (PROMPT, "a cat"))
    bad.request.write_bytes(b"{")
    command = ["train", *SHORT, *settings, "--train.steps", 7, "--train.checkpoint-every", 5, "--mesh.fsdp", 1]
    printed = outputs(start_all(command, 2, devices=2))
    assert "step 7" in printed[0] or "done" in printed[0], printed[0]
    assert read_facts(good.answer)["step"] == "5"
    assert "is not valid JSON" in bad.error.read_text()
