"""What runs of flow models need: the published ones by hand, and the text encoder, which is dropped before."""

from dataclasses import replace

import numpy as np
import pytest

from jaxbooth.config.run_config import Config
from jaxbooth.config.schema import MeshConfig
from jaxbooth.plan.abstract_step import abstract_base, abstract_mesh
from jaxbooth.plan.encoding import encoding_bytes
from jaxbooth.plan.estimate import estimate
from jaxbooth.plan.fit import out_of_memory_error
from jaxbooth.plan.flops import KERNEL
from jaxbooth.plan.hardware import find_topology
from jaxbooth.storage.files import write_json
from jaxbooth.storage.text import read_json

from .flow_models import FLOW_FAMILIES, write_pipeline
from .small_models import write_model

GIB = 2**30
RANK = 16
ADAPTED = {  # input + output widths of all layers with adapters: the projections of attention; in klein's single
    # blocks, these are one with those of the feed-forward network
    "zimage": 34 * 4 * (1 + 1) * 3840,
    "klein-4b": (5 * 8 * (1 + 1) + 20 * ((1 + 9) + (4 + 1))) * 3072,
    "klein-9b": (8 * 8 * (1 + 1) + 24 * ((1 + 9) + (4 + 1))) * 4096,
}
# Of Z-Image: layers, refiners that see the image, width, heads and inner width of the feed-forward network.
LAYERS, REFINERS, WIDTH, HEADS, INNER = 30, 2, 3840, 30, 10240
IMAGE, TEXT = 64 * 64, 64  # tokens of 1024 px, and those that a prompt of unknown length is planned with
ROWS = 2  # an instance and a class image


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models of both families, Z-Image's with positions for a prompt of unknown length."""
    written = {name: write_pipeline(name, tmp_path_factory.mktemp(name) / "model") for name in FLOW_FAMILIES}
    config = written["zimage"] / "transformer" / "config.json"
    write_json(config, read_json(config) | {"axes_lens": [TEXT + 2, 32, 32]})
    return {name: str(folder) for name, folder in written.items()}


@pytest.fixture(scope="module")
def small_sd15(tmp_path_factory):
    """A small model of SD 1.5's kind."""
    return str(write_model("sd15", tmp_path_factory.mktemp("sd15") / "model"))


def planned(model, topology, **sections):
    """Estimates a LoRA's step of an instance and a class image."""
    settings = Config.model_validate({"model": model, "lora": {"rank": RANK}} | sections)
    config, base = abstract_base(settings, topology.platform)
    return config, base, estimate(config, base, topology)


@pytest.fixture(scope="module", params=ADAPTED)
def published(request):
    """A published model, planned for one v6e chip at its own 1024 px."""
    return request.param, *planned(request.param, find_topology("v6e:1"), train={"remat": "blocks"})


def size(base, component):
    """Returns the number of parameters of a component."""
    return sum(int(np.prod(leaf.shape)) for leaf in base.module(component).shapes.values())


def test_a_published_model_is_trained_without_its_text_encoder(published):
    model, config, base, step = published
    memory = step.at().memory
    assert config.resolution == 1024
    assert memory["frozen"] == 2 * size(base, base.denoiser_name) + 4 * size(base, "vae")
    assert memory["parameters"] == 4 * RANK * ADAPTED[model]
    assert memory["optimizer"] == pytest.approx(8 * RANK * ADAPTED[model], abs=64)


def test_its_prompts_are_encoded_in_the_memory_of_the_text_encoder_and_of_scores(published):
    _, _, base, step = published
    [encoder] = base.text.encoders
    length = base.text.abstract_ids(1)[encoder.name].shape[-1]
    held = 2 * size(base, encoder.name)
    scores = 8 * encoder.config.num_attention_heads * length**2 * 4  # of 8 prompts, float32
    assert held + scores < step.encoding < held + scores + 0.3 * GIB


@pytest.mark.parametrize("published", ["zimage"], indirect=True)
def test_the_flops_of_z_image_are_those_of_its_products_and_of_attention(published):
    _, _, _, step = published
    matrices = 4 * WIDTH**2 + 3 * WIDTH * INNER
    forward = 2 * matrices * ROWS * (LAYERS * (IMAGE + TEXT) + REFINERS * IMAGE)
    kernels = step.flops[KERNEL].per_example
    # Blocks run twice; backward, frozen matrices have no gradients.
    assert step.at().flops - kernels == pytest.approx(3 * forward, rel=0.01)
    # Splash attention takes whole blocks of 512: 9 for image and text, 8 for the image. Each of two forward passes
    # takes two products; backward, up to 4096 tokens take five in one kernel, and more take seven in two.
    product = 2 * ROWS * WIDTH
    assert kernels == product * (LAYERS * (9 * 512) ** 2 * (4 + 7) + REFINERS * (8 * 512) ** 2 * (4 + 5))


def test_z_image_on_int8_weights_agrees_with_its_compiled_step():
    """Compiled for v5e:2x2 by libtpu 0.0.42 with the least effort: an instance and a class image per chip, 1024 px."""
    train = {"batch_size": 4, "remat": "blocks"}
    _, _, step = planned("zimage", find_topology("v5e:2x2"), train=train, model_quantization="int8")
    arguments, temporary, program = 6_927_625_728, 4_344_315_392, 31_415_296
    assert step.at().hbm_bytes - step.resident == pytest.approx(arguments + temporary + program, rel=0.05)
    assert step.at().flops - step.kernel_flops() == pytest.approx(285_138_818_695_168, rel=0.01)
    assert arguments + temporary + program + step.resident < 11 * GIB


def test_a_quantized_text_encoder_needs_less_while_prompts_are_encoded(folders, monkeypatch):
    monkeypatch.setattr("jaxbooth.models.quantization.MIN_SIZE", 1)
    full, small = (
        planned(folders["zimage"], find_topology("v5e:1"), model_quantization=kind)[2] for kind in ("none", "int8")
    )
    assert small.encoding < full.encoding
    assert small.persistent["frozen"] < full.persistent["frozen"]


def test_z_image_over_four_chips_agrees_with_its_compiled_step():
    """Compiled for v5e:2x2 by libtpu 0.0.42, all 30 layers: an instance and a class image per chip."""
    train = {"batch_size": 4, "remat": "attention"}
    _, _, step = planned("zimage", find_topology("v5e:2x2"), train=train, mesh={"fsdp": 4})
    cost = step.at()
    arguments, vae, temporary, program = 3_562_483_200, 84_038_284, 10_284_084_224, 162_472_448
    assert cost.hbm_bytes == pytest.approx(arguments + vae + temporary + program, rel=0.03)
    assert cost.flops - step.kernel_flops() == pytest.approx(283_609_911_001_088, rel=0.01)
    assert cost.collectives["all-gather"] == pytest.approx(24_660_606_976, rel=0.01)
    assert step.fits()


def test_fsdp_splits_the_text_encoder_and_gathers_its_embeddings_whole(published):
    _, _, base, step = published
    [encoder] = base.text.encoders
    shared = encoding_bytes(base, abstract_mesh(MeshConfig(fsdp=4), find_topology("v6e:4")), "tpu")
    embeddings = 2 * encoder.config.vocab_size * encoder.config.hidden_size
    held = 2 * size(base, encoder.name)
    assert shared == pytest.approx(held / 4 + embeddings, rel=0.05)
    assert step.encoding - shared == pytest.approx(0.75 * held - embeddings, rel=0.1)


def test_a_text_encoder_that_stays_is_a_part_of_the_step(small_sd15):
    _, _, step = planned(small_sd15, find_topology("v6e:1"))
    assert (step.encoding, step.needed()) == (0, step.at().hbm_bytes)


@pytest.mark.parametrize("published", ["klein-9b"], indirect=True)
def test_a_device_without_room_for_the_text_encoder_is_told_so(published):
    _, config, base, step = published
    step = replace(step, encoding=40 * GIB)
    assert not step.fits()
    assert step.largest_batch() == 0
    assert str(out_of_memory_error(config, base, step)).startswith("encoding the prompts needs 40.0 GiB, but the ")


@pytest.mark.parametrize("family", FLOW_FAMILIES)
def test_remat_keeps_less_and_computes_more(folders, family):
    topology, resolution = find_topology("v6e:1"), {"resolution": 64}
    none, attention, blocks = (
        planned(folders[family], topology, data=resolution, train={"remat": remat})[2].at()
        for remat in ("none", "attention", "blocks")
    )
    assert none.memory["activations"] > 1.2 * blocks.memory["activations"]
    assert 1.2 * none.flops < blocks.flops
    assert attention == blocks  # all blocks are those of transformers
