"""What people type who come from another trainer, or mistype, is answered with what they meant."""

import subprocess
import sys

import pytest

from jaxbooth.cli.evaluate import EvaluateArguments
from jaxbooth.cli.export import ExportArguments
from jaxbooth.cli.plan import PlanArguments
from jaxbooth.cli.report import ReportArguments
from jaxbooth.cli.sample import SampleArguments
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag, flatten
from jaxbooth.config.suggestions import PIPELINES, TRAINERS, check_flags, flag_keys, peer_equivalents, peer_flags


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--learning_rate", "here it is --train.learning-rate."),
        ("--lr", "here it is --train.learning-rate."),
        ("--instance_data_dir=photos", "here it is --data.instance-dir."),
        ("--output_dir", "here it is --run-dir; the result is in its export/."),
        ("--with_prior_preservation", "here it is on by default: --prior.method class-images."),
        (
            "--diff_output_preservation",
            "here it is --prior.method output-preservation, for a LoRA or the whole model.",
        ),
        (
            "--masked_prior_preservation_weight",
            "here it is --loss.outside-mask frozen, --prior.outside-mask-weight.",
        ),
        ("--Max-Train-Steps", "here it is --train.steps."),
        ("--network_dim", "here it is --lora.rank; their default is 4."),
        ("--train.lr", "here it is --train.learning-rate."),
        ("--lora_dropout", "jaxbooth has none."),
        ("--local_rank", "jaxbooth has none: or --distributed.process-id."),
        ("--guidance-scale", "perhaps you meant --prior.guidance-scale or --validation.guidance-scale."),
        ("--train.learning-rte", "perhaps you meant --train.learning-rate or --text.learning-rate."),
        ("--prior.batch-size", "perhaps you meant --prior.sample-batch-size."),
        ("--sede", "perhaps you meant --seed."),
        ("--trian.text-encoder", "perhaps you meant --train.text-encoder."),
        ("--train.resolution", "perhaps you meant --data.resolution."),
        ("--lora", "lora is a group of settings, such as --lora.rank and --lora.kind."),
        ("--text", "text is a group of settings, such as --text.learning-rate and --text.caption-dropout."),
        ("--frobnicate", "`jaxbooth train --help` lists all flags."),
    ],
)
def test_an_unknown_flag_of_train_is_answered_with_what_was_meant(refused, typed, meant):
    assert refused("train", "demo", typed, "1") == f"unknown flag {typed.split('=')[0]}; {meant}"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--num_inference_steps", "here it is --steps."),
        ("--cfg_scale", "here it is --guidance-scale."),
        ("--output", "here it is --out."),
        ("--sampeler", "perhaps you meant --sampler."),
    ],
)
def test_an_unknown_flag_of_sample_is_answered_in_the_words_of_sampling(refused, typed, meant):
    assert refused("sample", "demo", "--prompt", "x", typed, "1") == f"unknown flag {typed}; {meant}"


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train: {learning_rte: 1}", "'train.learning_rte'; perhaps you meant train.learning_rate"),
        ("train: {gradient_checkpointing: true}", "'train.gradient_checkpointing'; here it is train.remat blocks"),
        ("learning_rate: 1", "'learning_rate'; here it is train.learning_rate."),
        ("output_dir: runs/x", "'output_dir'; here it is run_dir; the result is in its export/."),
        ("train: {learning-rate: 1}", "'train.learning-rate'; perhaps you meant train.learning_rate."),
        ("evalution: {every: 5}", "'evalution'; perhaps you meant evaluation or validation."),
        ("network_dropout: 0.1", "'network_dropout'; jaxbooth has none."),
        (
            "loss: {sort: huber}",
            "'loss.sort'; loss has prediction_space, weighting, snr_gamma",
        ),
        ("frobnicate: 1", "'frobnicate'; `jaxbooth train --help` lists the keys."),
    ],
)
def test_an_unknown_key_of_a_file_is_answered_too(refused, tmp_path, key, meant):
    (tmp_path / "run.yaml").write_text(key + "\n")
    assert f"unknown key {meant}" in refused("train", tmp_path / "run.yaml")


@pytest.mark.parametrize("typed", ["--train.batch_size", "--train.batch-size=2", "--train.no-text-encoder", "--export"])
def test_a_flag_that_exists_passes_in_every_spelling(typed):
    check_flags(Config, [typed, "1"], "jaxbooth train", TRAINERS)


@pytest.mark.parametrize(
    "kind", [Config, PlanArguments, SampleArguments, ExportArguments, EvaluateArguments, ReportArguments]
)
def test_every_flag_of_every_command_passes(kind):
    flags = ["--" + key.replace("_", "-") for key in flag_keys(kind)]
    check_flags(kind, flags, "jaxbooth", PIPELINES)


def test_what_the_data_say_is_here_is_here():
    known = {flag(key) for key in flatten(Config())} | {"--out", "--push", "--format", "--dtype"}
    texts = [row["here"] for peer in TRAINERS for rows in peer_flags()[peer].values() for row in rows]
    named = {word.rstrip("`,.;:)") for text in texts for word in text.replace("`", " ").split() if word[:2] == "--"}
    assert sorted(named - known) == []


def test_no_name_of_a_peer_is_one_of_jaxbooths_own_keys():
    own = {key for key in flatten(Config()) if "." not in key}
    assert {name for name in peer_equivalents(TRAINERS) if name in own} <= {"seed", "revision", "variant", "vae"}


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["jaxbooth", "sam"], {"sample"}),
        (["jaxbooth", "sample", "--guid"], {"--guidance-scale"}),
        (["jaxbooth", "export", "--for"], {"--format"}),
        (["jaxbooth", "train", "demo", "--train.rem"], {"--train.remat"}),
        (["jaxbooth", "train", "demo", "--train.lea"], {"--train.learning-rate"}),
        (["jaxbooth", "sample", "--sampler", "eu"], {"euler", "euler_ancestral"}),
        (["jaxbooth", "lora", "ext"], {"extract"}),
        (["jaxbooth", "lora", "resize", "--ra"], {"--rank"}),
    ],
)
def test_bash_completes_commands_flags_and_choices(bash_completion, words, completed):
    array = " ".join(f"'{word}'" for word in words)
    script = f"source {bash_completion}; COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _tyro_jaxbooth"
    done = subprocess.run(["bash", "-c", f'{script}; echo "${{COMPREPLY[@]}}"'], capture_output=True, text=True)
    assert set(done.stdout.split()) == completed


@pytest.fixture(scope="module")
def bash_completion(tmp_path_factory):
    """The script that `jaxbooth completion bash` prints."""
    path = tmp_path_factory.mktemp("completion") / "jaxbooth.bash"
    argv = [sys.executable, "-m", "jaxbooth", "completion", "bash"]
    path.write_text(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout)
    return path
