"""Prompts that are encoded ahead, by a language model that is dropped again."""

import jax
import numpy as np
import pytest

from jaxbooth.base.encoded_prompts import encode_ahead
from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.params import full_precision

from .flow_models import FLOW_FAMILIES, write_pipeline
from .torch_parity import TOLERANCE, relative_error

BATCH_SIZE = 2
CAPTIONS = ["a cat " * number for number in range(0, 20, 4)]  # the first is empty


@pytest.fixture(scope="module", params=FLOW_FAMILIES)
def base(request, tmp_path_factory) -> BaseModel:
    return BaseModel.read(write_pipeline(request.param, tmp_path_factory.mktemp("model") / request.param), "float32")


def test_many_prompts_are_encoded_a_few_at_a_time(base, mesh):
    params = load_params(base, mesh, components=base.text_encoder_names)
    with full_precision():
        expected = jax.jit(base.text.encode)(params, base.text.tokenize(CAPTIONS))
        captions, sampled = encode_ahead(base, mesh, CAPTIONS, ["a dog", ""], batch_size=BATCH_SIZE)
    found = captions.select(CAPTIONS)
    assert relative_error(found.prompt_embeds, np.asarray(expected.prompt_embeds)) < TOLERANCE
    if expected.lengths is not None:
        np.testing.assert_array_equal(found.lengths, expected.lengths)
    assert len(captions.text.prompt_embeds) == len(CAPTIONS)
    assert len(sampled.text.prompt_embeds) == 2


def test_encoded_prompts_are_chosen_by_their_text(base, mesh):
    [captions] = encode_ahead(base, mesh, CAPTIONS, batch_size=BATCH_SIZE)
    chosen = captions.select([CAPTIONS[4], CAPTIONS[0], CAPTIONS[4]])
    np.testing.assert_array_equal(chosen.prompt_embeds, np.asarray(captions.text.prompt_embeds)[[4, 0, 4]])


def test_embeddings_may_stay_on_the_host(base, mesh):
    [on_devices], [on_host] = (
        encode_ahead(base, mesh, CAPTIONS, on_host=on_host, batch_size=BATCH_SIZE) for on_host in (False, True)
    )
    leaves = jax.tree.leaves(on_host.select(CAPTIONS[:3]))
    assert all(isinstance(leaf, np.ndarray) for leaf in leaves)
    for leaf, expected in zip(leaves, jax.tree.leaves(on_devices.select(CAPTIONS[:3])), strict=True):
        np.testing.assert_array_equal(leaf, np.asarray(expected))
