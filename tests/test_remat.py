"""The policies of gradient checkpointing: what each computes again, and which one `auto` takes."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from jaxbooth.config.run_config import Config
from jaxbooth.models.remat import REMATS
from jaxbooth.plan.abstract_step import abstract_base
from jaxbooth.plan.estimate import estimate
from jaxbooth.plan.fit import AUTO_POLICIES, resolve_remat
from jaxbooth.plan.hardware import find_topology
from jaxbooth.training.step import gradients
from tests.training import setup

PRODUCTS = ("dot_general", "conv_general_dilated")


def equations(jaxpr):
    """All equations of a jaxpr and of those inside of it; of branches for platforms, the last one."""
    for equation in jaxpr.eqns:
        yield equation
        branches = equation.params.get("branches")
        inner = [branches[-1]] if branches else equation.params.values()
        for value in inner:
            body = getattr(value, "jaxpr", value)
            if hasattr(body, "eqns"):
                yield from equations(body)


@pytest.fixture(scope="module")
def counts(micro, micro_params, mesh):
    """Returns policy -> how often each primitive occurs in the losses and gradients of a step."""

    def count(policy):
        made = setup(micro, micro_params, mesh, (1, 1), remat=policy)
        rest = (made.frozen, made.source, made.key, jnp.int32(0))
        traced = jax.make_jaxpr(lambda params: gradients(made.spec, params, *rest))(made.state.params)
        return Counter(equation.primitive.name for equation in equations(traced.jaxpr))

    return {policy: count(policy) for policy in (*REMATS, "auto")}


def products(count):
    """Matrix products and convolutions."""
    return sum(count[name] for name in PRODUCTS)


def test_dots_computes_no_product_again_but_what_is_between_them(counts):
    assert products(counts["dots"]) == products(counts["none"])
    assert counts["dots"]["erfc"] > counts["none"]["erfc"]  # of the GELU


def test_attention_computes_the_transformers_again_and_no_convolution(counts):
    assert counts["attention"]["dot_general"] > counts["none"]["dot_general"]
    assert counts["attention"]["conv_general_dilated"] == counts["none"]["conv_general_dilated"]


def test_blocks_computes_the_convolutions_again_as_well(counts):
    assert counts["blocks"]["dot_general"] >= counts["attention"]["dot_general"]
    assert counts["blocks"]["conv_general_dilated"] > counts["attention"]["conv_general_dilated"]


def test_auto_keeps_everything_until_somebody_has_looked_what_fits(counts):
    assert counts["auto"] == counts["none"]


@pytest.fixture(scope="module")
def whole():
    """Returns a function from policy and bytes of memory to the arguments of `resolve_remat`."""

    def asked(policy, memory):
        train = {"batch_size": 32, "remat": policy, "dtype": "bfloat16"}
        config, base = abstract_base(Config.model_validate({"model": "demo", "train": train}), "tpu")
        topology = find_topology("v6e:1x1")
        return config, base, replace(topology, chip=topology.chip._replace(memory=memory))

    return asked


def test_auto_takes_the_first_policy_that_fits(whole):
    needs = {policy: estimate(*whole(policy, 1e12)).at().hbm_bytes for policy in AUTO_POLICIES}
    assert needs["blocks"] < needs["attention"] < needs["none"]
    assert resolve_remat(*whole("auto", needs["attention"]))[0].train.remat == "attention"
    assert resolve_remat(*whole("auto", needs["blocks"] - 1))[0].train.remat == "blocks"


def test_a_named_policy_stays(whole):
    assert resolve_remat(*whole("attention", 1e12))[0].train.remat == "attention"
