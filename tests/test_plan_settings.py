"""What each setting does to the estimate of a step."""

import pytest

from jaxbooth.config.run_config import Config
from jaxbooth.params import is_matrix
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.plan.estimate import estimate
from jaxbooth.plan.hardware import find_topology
from tests.small_models import write_model

BATCH = 8  # instance images on one device, and as many prior ones


@pytest.fixture(scope="module")
def estimated(tmp_path_factory):
    """Estimates a small model's step, each only once; settings are sections, and keys without one go to `train`."""
    model = str(write_model("sd15", tmp_path_factory.mktemp("models") / "sd15"))
    estimates = {}

    def run(name="v5e:1x1", **settings):
        key = (name, str(settings))
        sections = {
            name: settings.pop(name) for name in ("loss", "lora", "mesh", "text", "data", "prior") if name in settings
        }
        config = Config.model_validate({"model": model, "train": {"batch_size": BATCH} | settings} | sections)
        topology = find_topology(name)
        if key not in estimates:
            estimates[key] = estimate(*abstract_base(config, topology.platform), topology)
        return estimates[key]

    return run


def memory(step, kind):
    """Bytes of one kind."""
    return step.at().memory[kind]


def test_remat_needs_less_memory_and_more_flops(estimated):
    plain, remat = estimated().at(), estimated(remat="blocks").at()
    assert remat.memory["activations"] < 0.8 * plain.memory["activations"]
    assert 1.2 * plain.flops < remat.flops < 1.4 * plain.flops


def test_accumulation_needs_a_part_of_the_activations_and_float32_sums(estimated):
    plain, parts = estimated(batch_size=4 * BATCH), estimated(batch_size=4 * BATCH, gradient_accumulation_steps=4)
    assert parts.per_device_batch == plain.per_device_batch / 4
    assert memory(parts, "activations") < 0.4 * memory(plain, "activations")
    assert memory(parts, "gradients") >= memory(parts, "parameters")  # all float32
    assert parts.at().flops == pytest.approx(plain.at().flops, rel=0.02)


def test_an_average_is_one_more_copy_of_what_is_trained(estimated):
    assert memory(estimated(ema_decay=0.99), "parameters") == 2 * memory(estimated(), "parameters")


def test_optimizers_differ_in_what_they_hold(estimated):
    parameters = memory(estimated(), "parameters")
    assert memory(estimated(), "optimizer") == pytest.approx(2 * parameters, abs=64)
    assert memory(estimated(mu_dtype="bfloat16"), "optimizer") == pytest.approx(1.5 * parameters, abs=64)
    assert memory(estimated(optimizer="lion"), "optimizer") == pytest.approx(parameters, abs=64)
    assert memory(estimated(optimizer="adafactor"), "optimizer") < 1.1 * parameters


def test_a_trained_text_encoder_is_no_longer_frozen_and_is_run_in_the_step(estimated):
    plain, text = estimated(), estimated(text_encoder=True)
    encoder = memory(text, "parameters") - memory(plain, "parameters")
    assert encoder > 0
    assert memory(plain, "frozen") - memory(text, "frozen") == encoder / 2  # it was kept in bfloat16
    assert text.at().flops > plain.at().flops


def test_new_tokens_read_a_text_encoder_that_stays_as_it_is(estimated):
    plain, tokens = estimated(), estimated(text={"placeholder_tokens": ["<sks>"]}, data={"class_prompt": "a cat"})
    assert memory(tokens, "frozen") == memory(plain, "frozen")
    assert tokens.resident < plain.resident  # the step reads it
    assert memory(tokens, "parameters") == memory(plain, "parameters") + 4 * 24


def test_the_frozen_models_prediction_costs_its_parameters_and_a_forward_pass_on_prior_images(estimated):
    plain, frozen = estimated(), estimated(prior={"target": "frozen"})
    copy = memory(frozen, "frozen") - memory(plain, "frozen")  # in bfloat16, but for biases and norms
    assert copy == pytest.approx(memory(plain, "parameters") / 2, rel=0.02)
    assert frozen.at().flops / plain.at().flops == pytest.approx(1 + 1 / 2 / 3, rel=0.03)  # half of the images


def test_rows_that_distil_the_frozen_model_cost_as_much_whatever_they_show(estimated):
    frozen = estimated(prior={"target": "frozen"}).at()
    kept = estimated(prior={"method": "output-preservation"}).at()
    assert kept.flops == pytest.approx(frozen.flops, rel=0.01)
    assert kept.memory["frozen"] == frozen.memory["frozen"]


def test_a_weight_anchor_costs_a_float32_copy_of_what_is_trained(estimated):
    plain, anchored = estimated(), estimated(prior={"method": ["class-images", "weight-anchor"]})
    assert memory(anchored, "frozen") - memory(plain, "frozen") == memory(plain, "parameters")
    assert anchored.at().flops == pytest.approx(plain.at().flops, rel=0.01)


def test_a_lora_reads_frozen_kernels_and_needs_no_gradient_of_them(estimated):
    plain, lora = estimated(), estimated(lora={"rank": 4})
    assert memory(lora, "parameters") < 0.1 * memory(plain, "parameters")
    assert memory(lora, "frozen") == memory(plain, "frozen") + memory(plain, "parameters") / 2
    assert lora.at().flops < 0.85 * plain.at().flops


def test_one_device_sends_nothing_and_copies_sum_gradients_of_kernels_in_the_compute_dtype(estimated):
    assert estimated().at().collectives == {}
    copies = estimated("v5e:2x2", batch_size=4 * BATCH)
    shapes = abstract_base(copies.config)[1].denoiser.shapes
    others = sum(leaf.size for name, leaf in shapes.items() if not is_matrix(name, leaf))  # summed in float32
    assert others > 1000
    assert copies.at().collectives == {"all-reduce": memory(copies, "parameters") / 2 + 2 * others}
    assert copies.per_device_batch == estimated().per_device_batch
    assert copies.at().flops == pytest.approx(estimated().at().flops, rel=1e-6)


def test_accumulation_sends_every_part(estimated):
    plain, parts = (estimated("v5e:2x2", batch_size=4 * BATCH, gradient_accumulation_steps=k) for k in (1, 2))
    assert parts.at().collectives["all-reduce"] == 2 * plain.at().collectives["all-reduce"]


def test_fsdp_cuts_what_is_held_and_gathers_it(estimated):
    copies = estimated("v5e:2x2", batch_size=4 * BATCH)
    cut = estimated("v5e:2x2", batch_size=4 * BATCH, mesh={"fsdp": 4})
    sent = cut.at().collectives
    assert memory(cut, "parameters") < 0.35 * memory(copies, "parameters")  # small ones stay whole
    assert memory(cut, "optimizer") < 0.35 * memory(copies, "optimizer")
    assert sent["all-gather"] == pytest.approx(4 * sent["reduce-scatter"])
    assert memory(cut, "activations") > memory(copies, "activations")  # what is gathered counts there
    assert cut.at().flops == pytest.approx(copies.at().flops, rel=0.01)


def test_tensor_splits_the_transformers_products_and_sums_what_is_partial(estimated):
    copies = estimated("v5e:2x2", batch_size=4 * BATCH)
    split = estimated("v5e:2x2", batch_size=4 * BATCH, mesh={"tensor": 2})
    assert split.per_device_batch == 2 * copies.per_device_batch  # half as many parts
    assert copies.at().flops < split.at().flops < 2 * copies.at().flops
    assert memory(split, "parameters") < memory(copies, "parameters")
    assert split.at().collectives["all-reduce"] > memory(split, "parameters") / 2


def test_a_cpu_keeps_what_remat_would_drop(estimated):
    plain, remat = estimated("cpu:1").at(), estimated("cpu:1", remat="blocks").at()
    assert remat.memory == plain.memory
    assert remat.flops > 1.2 * plain.flops


def test_auto_is_the_compute_dtype_of_the_planned_platform(tmp_path):
    model = str(write_model("sd15", tmp_path / "sd15"))
    config = Config.model_validate({"model": model})
    dtypes = {platform: abstract_base(config, platform)[1].dtype.name for platform in ("tpu", "gpu", "cpu")}
    assert dtypes == {"tpu": "bfloat16", "gpu": "bfloat16", "cpu": "float32"}


def test_a_gpu_holds_no_program_and_splits_no_convolutions(estimated):
    gpu = estimated("a100-80gb:1")
    assert "program" not in gpu.at().memory
    assert gpu.at(2).flops == pytest.approx(gpu.at().flops / 4, rel=0.03)  # less the update
