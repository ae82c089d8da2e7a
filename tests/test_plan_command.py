"""`jaxbooth plan` as it is typed: what it prints, offline and without weights, and what it refuses."""

import importlib.util
import json

import pytest

from jaxbooth.cli.main import main
from jaxbooth.config.run_config import Config
from jaxbooth.config.section import flag, flatten
from jaxbooth.console.numbers import GIB
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json
from jaxbooth.weights.skeleton import write_skeleton

KEYS = {
    "fits", "hbm_bytes", "hbm_limit_bytes", "memory", "flops", "bytes_accessed", "collectives",
    "largest_batch_per_chip", "seconds_per_step", "images_per_second", "bound", "hours", "chip_hours", "advice",
    "compiled", "topology", "chips",
}  # fmt: skip
TINY = {
    "unet": {
        "block_out_channels": [16, 32], "layers_per_block": 1, "sample_size": 8, "norm_num_groups": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "cross_attention_dim": 32,
    },
    "vae": {
        "block_out_channels": [16, 16], "layers_per_block": 1, "norm_num_groups": 8,
        "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
    },
    "text_encoder": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2},
}  # fmt: skip
SMALL = ("--data.resolution", "16", "--train.steps-per-dispatch", "2", "--validation.steps", "2")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No cached model of the Hub, no way to it, and an empty folder."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def planned(capsys):
    """Runs `jaxbooth plan --json` and returns what it printed, which must be JSON alone."""

    def run(*argv):
        main(["plan", *map(str, argv), "--json"])
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refused(capsys):
    """Runs a plan that must end with one sentence and exit code 2, and returns the sentence."""

    def run(*argv):
        with pytest.raises(SystemExit) as stop:
            main(["plan", *map(str, argv)])
        printed = capsys.readouterr()
        assert (stop.value.code, printed.out) == (2, "")
        assert printed.err.count("\n") == 1
        return printed.err.removeprefix("error: ").strip()

    return run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model folder without weights, whose programs compile in seconds."""
    folder = tmp_path_factory.mktemp("model") / "small"
    write_skeleton("sd15", folder)
    for component, changes in TINY.items():
        path = folder / component / "config.json"
        write_json(path, read_json(path) | changes)
    return folder


def test_sd15_fully_trained_fits_four_v5e_chips_with_fsdp(planned):
    plan = planned("sd15", "--topology", "v5e:2x2", "--mesh.fsdp", "4", "--train.batch-size", "8")
    assert plan.keys() >= KEYS
    assert (plan["topology"], plan["chips"], plan["compiled"], plan["fits"]) == ("v5e:2x2", 4, False, True)
    assert plan["hbm_limit_bytes"] == 15.75 * GIB
    assert plan["hbm_bytes"] == sum(plan["memory"].values())
    assert plan["memory"]["optimizer"] == pytest.approx(2 * 4 * 859.5e6 / 4, rel=0.01)  # Adam's moments, a quarter
    assert plan["largest_batch_per_chip"] >= 4
    assert set(plan["collectives"]) == {"all-gather", "reduce-scatter", "all-reduce"}
    assert plan["advice"] == []


def test_sdxl_lora_is_planned_from_its_shipped_configuration(planned):
    plan = planned("sdxl-lora", "--topology", "v5e:4x4", "--train.batch-size", "16")
    assert plan["memory"]["frozen"] > 2 * 2.56e9  # the UNet's bfloat16 weights
    assert plan["seconds_per_step"] == max(plan["roofline_seconds"].values()) / plan["efficiency"]
    assert plan["images_per_second"] == pytest.approx(32 / plan["seconds_per_step"])
    assert plan["hours"] == pytest.approx(1000 * plan["seconds_per_step"] / 3600)
    assert plan["chip_hours"] == pytest.approx(16 * plan["hours"])


def test_sd21_is_planned_at_its_own_768_pixels(planned):
    plan = planned("sd21", "--topology", "v5p:2x2x1", "--train.batch-size", "4")
    assert plan["fits"] is True
    assert plan["bound"] in ("compute", "memory")
    assert plan["memory"]["latents"] == pytest.approx(205 * 2 * 4 * 96 * 96 * 4, rel=0.1)  # moments of 205 images


def test_a_run_that_does_not_fit_names_changes_that_do(planned, small):
    flags = ("--data.resolution", "128", "--train.batch-size", "8192", "--topology", "v5e:1x1")
    plan = planned("--model", small, *flags)
    assert plan["fits"] is False
    assert plan["hbm_bytes"] > plan["hbm_limit_bytes"]
    assert 0 < plan["largest_batch_per_chip"] < 8192
    assert plan["advice"]
    changed = planned("--model", small, *flags, *plan["advice"][0].partition(" (")[0].split())
    assert changed["fits"] is True


def test_images_that_only_fill_devices_are_pointed_out(planned, small):
    plan = planned("--model", small, *SMALL, "--topology", "v5e:4x4")
    assert plan["advice"] == ["2 images are padded to 16 to fill the devices: --train.batch-size 8 costs no more"]


def test_people_get_a_table(capsys, small):
    main(["plan", "--model", str(small), *SMALL, "--topology", "v5e:2x2", "--train.batch-size", "2"])
    printed = capsys.readouterr().out
    rows = ("plan", "fits", "memory", "largest batch", "FLOPs per step", "bytes moved", "collectives", "roofline",
            "expected", "the run")  # fmt: skip
    assert [row for row in rows if f"\n{row} " not in f"\n{printed}"] == []
    assert "of 15.75 GiB: " in printed


def test_help_names_every_key_of_a_run_and_the_plan_s_own(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "--help"])
    printed = capsys.readouterr().out
    wanted = ["--topology", "--compile", "--json", *(flag(key) for key in flatten(Config()) if key != "data.subjects")]
    assert stop.value.code == 0
    assert [name for name in wanted if name not in printed] == []


# The compiler


def test_compiling_for_the_devices_that_are_here(planned, small):
    plan = planned("--model", small, *SMALL, "--topology", "cpu", "--train.batch-size", "8", "--compile")
    compiler, persistent = plan["compiler"]["train"], plan["compiler"]["persistent"]
    assert plan["compiled"] is True
    assert plan["fits"] is True
    assert plan["collectives"].keys() == {"all-reduce"}
    assert plan["collectives"]["all-reduce"] == pytest.approx(
        persistent["parameters"], rel=0.01
    )  # of float32 gradients
    assert compiler["argument_bytes"] == pytest.approx(sum(persistent.values()) - persistent["resident"], rel=0.001)
    assert plan["hbm_bytes"] > plan["memory"]["parameters"] + plan["memory"]["optimizer"]
    assert plan["flops"] == compiler["flops"]  # XLA counts everything where no sequence is long
    assert plan["flops"] == pytest.approx(plan["estimated"]["flops"], rel=0.1)
    assert plan["sampling"]["flops"] > plan["compiler"]["sampling"]["flops"]  # two steps, of which XLA counts one


@pytest.mark.slow
def test_a_second_compilation_of_the_same_programs_comes_from_the_cache(planned, small, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    seconds = []
    for _ in range(2):
        plan = planned("--model", small, *SMALL, "--topology", "cpu:1", "--compile")
        seconds.append(plan["compiler"]["train"]["compile_seconds"])
    assert plan["collectives"] == {}
    assert seconds[1] < seconds[0] / 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_compiling_for_a_tpu_that_is_not_here(planned, small):
    flags = ("--topology", "v5e:2x2", "--mesh.fsdp", "4", "--train.batch-size", "4", "--compile")
    plan = planned("--model", small, *SMALL, *flags)
    assert plan["fits"] is True
    assert plan["memory"]["program"] > 0
    assert plan["seconds_per_step"] > 0
    assert plan["collectives"]["all-gather"] > 0


def test_a_step_is_timed_on_the_machine_itself_which_has_no_published_peak(planned, small):
    plan = planned("--model", small, *SMALL, "--mesh.data", "8", "--train.batch-size", "8")
    assert plan["measured"] is True
    assert 0 < plan["seconds_per_step"] < 60
    assert plan["images_per_second"] == pytest.approx(16 / plan["seconds_per_step"])


@pytest.mark.slow
def test_a_large_step_is_not_timed_unasked_and_the_table_says_so(capsys):
    main(["plan", "sd15", "--mesh.data", "1", "--mesh.fsdp", "8", "--train.batch-size", "8"])
    assert "not measured: " in capsys.readouterr().out


# Bad input


def test_an_unknown_topology_lists_the_known_ones(refused):
    message = refused("demo", "--topology", "v5e:3x5")
    assert message.startswith("--topology v5e:3x5: v5e comes as :1x1, :2x2")
    assert ":4x4" in message


def test_a_mesh_that_does_not_divide_the_devices_says_what_would(refused):
    message = refused("sd15", "--topology", "v5e:4x4", "--mesh.fsdp", "3")
    assert "--mesh.fsdp 3" in message
    assert "1, 2, 4, 8 or 16 would" in message


def test_a_batch_that_does_not_divide_into_micro_batches_is_refused(refused):
    message = refused(
        "sd15", "--topology", "v5e:2x2", "--train.batch-size", "4", "--train.gradient-accumulation-steps", "3"
    )
    assert message == "--train.batch-size 4 is not a multiple of --train.gradient-accumulation-steps 3."


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_compiling_for_a_tpu_without_libtpu_says_what_to_install(refused, small):
    message = refused("--model", small, *SMALL, "--topology", "v5e:2x2", "--compile")
    assert message == '--compile for v5e:2x2 needs libtpu: pip install "jaxbooth[tpu]".'


def test_gpus_that_are_not_here_cannot_be_compiled_for(refused, small):
    message = refused("--model", small, *SMALL, "--topology", "h100:8", "--compile")
    assert message.startswith("--compile cannot describe h100:8")


def test_a_flag_that_does_nothing_is_refused_as_in_training(refused):
    assert refused("sd15", "--topology", "v5e:2x2", "--lora.alpha", "8") == "--lora.alpha needs --lora.rank."


@pytest.mark.parametrize(("flags", "message"), [
    (("--model-quantization", "int8"), "--model-quantization int8 is for frozen weights"),
    (("--lora.rank", 4, "--lora.kind", "lokr", "--mesh.tensor", 2), "--mesh.tensor 2 splits the outputs of layers"),
])  # fmt: skip
def test_what_cannot_be_trained_is_not_planned(refused, flags, message):
    assert refused("sd15", "--topology", "v5e:2x2", *flags).startswith(message)


def test_a_model_that_does_not_exist_is_named(refused):
    assert "no-such-model" in refused("--model", "./no-such-model", "--topology", "v5e:2x2")
