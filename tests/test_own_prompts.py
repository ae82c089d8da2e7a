"""Prompts that a run did not know when it dropped its text encoder: encoded by a process beside the training."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from jaxbooth.base.encoded_prompts import EncodedPrompts, empty_embeddings, encode_ahead
from jaxbooth.base.model import BaseModel
from jaxbooth.base.text_encoder import TextEmbeddings
from jaxbooth.errors import UserError
from jaxbooth.params import full_precision
from jaxbooth.runs.own_prompts import OwnPrompts
from jaxbooth.runs.prompt_process import check_memory
from jaxbooth.runs.sample_requests import SampleRequest, ask
from tests.commands import SHORT, environment, read_facts, succeed, train
from tests.processes import outputs, start_all
from tests.torch_parity import TOLERANCE, relative_error

KNOWN, OWN = ["", "a cat"], "a cat " * 20 + "in a hat"  # longer than those that a run knows
SECONDS = 300
only_one = pytest.mark.parametrize("base", ["zimage"], indirect=True)


@pytest.fixture(scope="module", params=["zimage", "klein"])
def base(request, flow_folder) -> BaseModel:
    """A model whose text encoder runs once."""
    return BaseModel.read(flow_folder(request.param), "float32")


def alone(base: BaseModel, mesh, prompt: str) -> TextEmbeddings:
    """Returns the embeddings of a prompt that is encoded on its own."""
    [encoded] = encode_ahead(base, mesh, [prompt], on_host=True, batch_size=1)
    return encoded.text


def assert_near(found: TextEmbeddings, expected: TextEmbeddings) -> None:
    """Asserts that embeddings agree but for the order of sums, and lengths exactly."""
    assert relative_error(np.asarray(found.prompt_embeds), np.asarray(expected.prompt_embeds)) < TOLERANCE
    if expected.lengths is not None:
        np.testing.assert_array_equal(found.lengths, expected.lengths)


# The embeddings


@only_one
@pytest.mark.parametrize(("known", "own"), [(KNOWN, OWN), ([*KNOWN, OWN], "a dog")], ids=["longer", "shorter"])
def test_a_prompt_that_is_added_is_as_if_it_had_been_encoded_with_the_others(known, own, base, mesh):
    with full_precision():
        [found, expected] = encode_ahead(base, mesh, known, [*known, own])
        found = found.with_prompt(own, alone(base, mesh, own), mesh)
    assert list(found.index) == list(expected.index)
    assert_near(found.text, expected.text)


@only_one
def test_empty_embeddings_have_the_shape_of_a_prompt_of_that_length(base, mesh):
    text = alone(base, mesh, OWN)
    [encoded] = encode_ahead(base, mesh, KNOWN)
    empty = empty_embeddings(encoded.text, text.prompt_embeds.shape[1])
    assert [(value.shape, value.dtype) for value in empty if value is not None] == [
        (value.shape, value.dtype) for value in text if value is not None
    ]


@only_one
def test_some_prompts_of_many_keep_their_embeddings(base, mesh):
    [encoded] = encode_ahead(base, mesh, [*KNOWN, OWN])
    some = encoded.only(OWN, "")
    assert isinstance(some, EncodedPrompts)
    np.testing.assert_array_equal(some.select([""]).prompt_embeds, encoded.select([""]).prompt_embeds)


# The process


@pytest.fixture
def own_prompts(base, mesh, monkeypatch) -> Iterator[OwnPrompts]:
    """What encodes prompts for a run of the model."""
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    made = OwnPrompts(base, alone(base, mesh, "a cat"))
    yield made
    made.close()


def wait(own_prompts: OwnPrompts) -> None:
    """Waits for a process to end."""
    deadline = time.monotonic() + SECONDS
    while own_prompts.is_busy():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@only_one
def test_a_process_encodes_a_prompt_once_and_others_wait_for_it(own_prompts, base, mesh):
    assert own_prompts.get(OWN) is None
    assert own_prompts.is_busy()
    first = own_prompts.encoding
    assert own_prompts.get("a dog") is None
    assert own_prompts.encoding is first
    wait(own_prompts)
    with full_precision():
        expected = alone(base, mesh, OWN)
    found = own_prompts.get(OWN)
    assert found is not None
    assert found.prompt_embeds.dtype == own_prompts.like.prompt_embeds.dtype
    assert_near(found, expected)
    assert own_prompts.encoding is None
    assert not first.folder.exists()
    assert own_prompts.get("a dog") is None
    assert own_prompts.encoding.prompt == "a dog"


@only_one
def test_a_process_that_is_killed_leaves_a_sentence_and_the_next_one_may_do_better(own_prompts):
    assert own_prompts.get(OWN) is None
    own_prompts.encoding.process.send_signal(signal.SIGKILL)
    wait(own_prompts)
    with pytest.raises(UserError, match="killed by signal 9; there may be too little memory"):
        own_prompts.get(OWN)
    assert own_prompts.get(OWN) is None
    assert own_prompts.is_busy()


@only_one
def test_a_process_ends_with_the_training_and_leaves_nothing(own_prompts):
    own_prompts.get(OWN)
    encoding = own_prompts.encoding
    encoding.process.stdin.close()  # as the kernel does for a training that is killed
    assert encoding.process.wait(SECONDS) == 1
    assert not encoding.folder.exists()


@only_one
def test_a_model_that_is_gone_is_named(own_prompts, tmp_path):
    own_prompts.base = replace(own_prompts.base, folder=tmp_path / "gone")
    own_prompts.get(OWN)
    wait(own_prompts)
    with pytest.raises(UserError, match=r"could not be run beside it\. .*gone"):
        own_prompts.get(OWN)


@only_one
def test_a_host_without_the_memory_is_left_alone(base, mesh, monkeypatch, tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable:  1 kB\n")
    monkeypatch.setattr("jaxbooth.plan.hardware.MEMINFO", meminfo)
    with pytest.raises(UserError, match=r"needs .* MiB of this machine's memory and 0\.0 MiB are free"):
        check_memory(base, mesh)


# The training


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_answers_a_prompt_of_which_it_did_not_know(processes, base, tmp_path):
    run = tmp_path / "run"
    flags = ("--model", base.folder, "--data.resolution", 32, "--data.class-prompt", "a cat", "--lora.rank", 2)
    flags += ("--validation.every", 1000, "--train.checkpoint-every", 5, "--run-dir", run)
    succeed(train(run, *flags[:-2], steps=5))
    own = OWN if processes == 1 else "a dog"  # several compile no other program for a longer one
    too_long, files = ask(run, SampleRequest(OWN)), ask(run, SampleRequest(own, seed=3, num=2))
    steps = 5
    while not (files.answer.exists() or files.error.exists()) and steps < 10_000:
        steps *= 6
        if processes == 1:
            succeed(train(run, *flags[:-2], steps=steps))
        else:
            outputs(start_all(["train", *SHORT, *flags, "--train.steps", steps], processes, devices=processes))
    assert not files.error.exists(), files.error.read_text()
    assert int(read_facts(files.answer)["step"]) > 5
    assert too_long.answer.exists() == (processes == 1)
    assert processes == 1 or "is longer than all prompts of this run" in too_long.error.read_text()
