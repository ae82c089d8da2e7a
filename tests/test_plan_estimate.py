"""What a step needs of a device, estimated: against what can be computed by hand, and against XLA."""

from dataclasses import replace

import jax
import pytest

from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.plan.abstract_step import abstract_base, abstract_step
from jaxbooth.plan.estimate import estimate
from jaxbooth.plan.hardware import find_topology
from jaxbooth.plan.programs import trace_train
from jaxbooth.sharding import make_mesh
from tests.small_models import write_model

UNET, TEXT, VAE = 859_520_964, 123_060_480, 83_653_863  # parameters of SD 1.5
BATCH = 8  # images per device from which on a TPU's convolutions do not split their inputs


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a small model of SD 1.5's kind."""
    return str(write_model("sd15", tmp_path_factory.mktemp("models") / "sd15"))


@pytest.fixture
def estimated(small):
    """Estimates the small model's step; settings are sections, and keys without one belong to `train`."""

    def run(name="v5e:1x1", model=small, **settings):
        sections = {
            name: settings.pop(name) for name in ("loss", "lora", "mesh", "text", "data", "prior") if name in settings
        }
        config = Config.model_validate({"model": model, "train": {"batch_size": BATCH} | settings} | sections)
        topology = find_topology(name)
        return estimate(*abstract_base(config, topology.platform), topology)

    return run


@pytest.fixture(scope="module")
def whole():
    """SD 1.5, all of its UNet trained, on one v5e chip."""
    topology = find_topology("v5e:1x1")
    return estimate(
        *abstract_base(Config.model_validate({"model": "sd15", "train": {"batch_size": 4}}), "tpu"), topology
    )


def test_whole_sd15_holds_float32_masters_two_moments_and_what_images_are_generated_with(whole):
    memory = whole.at().memory
    assert memory["parameters"] == 4 * UNET
    assert memory["optimizer"] == pytest.approx(8 * UNET, abs=64)
    assert memory["frozen"] == whole.resident == 2 * TEXT + 4 * VAE
    assert memory["latents"] == pytest.approx(2 * 4 * (200 + 5) * 64 * 64 * 4, rel=0.02)  # means and log-variances


def test_every_variant_of_a_caption_is_kept_for_each_image(estimated):
    bound = 8
    varied = estimated(text={"shuffle_tags": True, "caption_variants": bound})
    _, base = abstract_base(varied.config)
    [embeds] = jax.tree.leaves(base.text.abstract_embeddings(1))
    more_captions = 5 * bound - 1  # of five images, in place of their one prompt
    more_rows = 4 * (bound - 1) * (200 + 5)  # int32, for each image
    difference = varied.at().memory["latents"] - estimated().at().memory["latents"]
    assert difference == more_captions * 4 * embeds.size + more_rows


def test_whole_sd15_does_not_fit_one_v5e_chip_without_remat_at_any_useful_batch(whole):
    assert not whole.fits()
    assert whole.largest_batch() < 4


def test_flops_are_linear_in_the_batch_size(whole):
    flops = [whole.at(batch).flops for batch in (4, 8, 12)]  # as many prior images
    assert flops[2] - flops[1] == pytest.approx(flops[1] - flops[0], rel=1e-9)
    # Forward 0.8 TFLOP for an image of 512 px and twice that backward; attention's kernel computes its scores again.
    assert flops[1] / 16 == pytest.approx(2.6e12, rel=0.1)


def test_few_images_cost_a_tpu_more_for_each(whole):
    few, full = whole.at(2), whole.at(4)
    assert few.flops / 4 > 1.02 * full.flops / 8
    assert few.memory["activations"] / 4 > 1.2 * full.memory["activations"] / 8


def test_sd15_over_four_chips_agrees_with_its_compiled_step(estimated):
    """Compiled for v5e:2x2 by libtpu 0.0.42: two instance and two prior images per chip."""
    step = estimated("v5e:2x2", "sd15", batch_size=8, remat="blocks", mesh={"fsdp": 4})
    arguments, temporary, program = 2_634_317_312, 2_778_101_248, 434_341_376
    cost = step.at()
    assert cost.hbm_bytes - step.resident == pytest.approx(arguments + temporary + program, rel=0.05)
    assert cost.flops - step.kernel_flops() == pytest.approx(10_736_375_955_456, rel=0.03)
    assert cost.memory["parameters"] == pytest.approx(UNET, rel=0.01)
    assert cost.memory["optimizer"] == pytest.approx(2 * UNET, rel=0.01)
    assert cost.collectives["all-gather"] == pytest.approx(3_327_104_000, rel=0.05)
    assert cost.collectives["reduce-scatter"] == pytest.approx(2 * UNET / 4, rel=0.01)


def test_a_lora_holds_little_and_fits_where_the_whole_model_does_not(estimated):
    step = estimated(model="sd15", batch_size=2, lora={"rank": 16})
    memory = step.at().memory
    assert memory["parameters"] == 4 * 3_188_736
    assert memory["frozen"] == 2 * (UNET + TEXT) + 4 * VAE
    assert step.fits()
    assert step.largest_batch() >= 2


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"train": {"batch_size": 4}}, 0.15),
        pytest.param({"train": {"batch_size": 4, "remat": "blocks"}}, 0.15, marks=pytest.mark.slow),
        # Beside few gradients, what the compiler keeps in float32 inside of one norm's backward pass has a share.
        pytest.param({"train": {"batch_size": 4}, "lora": {"rank": 4}}, 0.25, marks=pytest.mark.slow),
    ],
    ids=["whole", "remat", "lora"],
)
def test_a_step_on_a_cpu_agrees_with_its_compiled_form(small, settings, error):
    """In a model as small as this one, element-wise FLOPs have a share; XLA fuses, and so repeats, some of them."""
    config = Config.model_validate({"model": small} | settings)
    topology = find_topology("cpu:1")
    config, base = abstract_base(config, "cpu")
    step = estimate(config, base, topology)
    mesh = make_mesh(devices=jax.devices()[:1])
    compiled = trace_train(abstract_step(config, base, mesh), config.train.steps_per_dispatch).lower().compile()
    memory, cost = compiled.memory_analysis(), step.at()
    real = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    assert cost.hbm_bytes - step.resident == pytest.approx(real, rel=error)
    assert cost.flops == pytest.approx(compiled.cost_analysis()["flops"], rel=0.07)


def test_largest_batch_is_the_last_that_fits(estimated):
    step = estimated(batch_size=4, prior={"rows": 2})
    most = step.largest_batch()
    assert most > 0
    assert step.fits(most)
    assert not step.fits(most + 1)


def test_prior_images_keep_their_proportion(estimated):
    step = estimated(batch_size=4, prior={"rows": 2})
    assert [step.per_device_batch_of(batch) for batch in (1, 2, 4, 8)] == [2, 3, 6, 12]
    assert estimated(prior={"weight": 0}).per_device_batch == BATCH


def test_a_device_of_unknown_memory_holds_everything(estimated):
    topology = estimated("cpu:1").topology
    unknown = replace(topology, chip=topology.chip._replace(memory=None))
    step = estimate(*abstract_base(estimated("cpu:1").config, "cpu"), unknown)
    assert step.fits()
    assert step.largest_batch() is None


def test_a_mesh_that_the_devices_do_not_make_is_refused(estimated):
    with pytest.raises(UserError, match="3"):
        estimated("v5e:2x2", mesh={"fsdp": 3})
