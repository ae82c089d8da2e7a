"""Settings of the prior: which methods are on, with which weights, and what is refused."""

import pytest

from jaxbooth.base.model import BaseModel
from jaxbooth.base.trainable import add_trainable
from jaxbooth.cli.parse import parse, starting_config
from jaxbooth.config.prior import PriorConfig, describe_terms
from jaxbooth.config.rules import check_config
from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.runs.start_notes import log_prior

MASKED = {"data": {"masks": True}, "loss": {"outside_mask": "frozen"}}


def configure(prior=None, **sections):
    data = {"instance_dir": "cats", "instance_prompt": "a sks cat", "class_prompt": "a cat"}
    return Config.model_validate({"prior": prior or {}} | sections | {"data": data | sections.get("data", {})})


def from_flags(*flags):
    argv = ["demo", *flags]
    return parse(Config, argv, "jaxbooth train", starting_config(argv))


# Which methods are on


def test_class_images_are_on_by_default():
    assert PriorConfig().weights == {"class-images": 1.0}


def test_each_method_has_the_shared_weight_or_its_own():
    prior = PriorConfig(method=("class-images", "blank-prompt", "weight-anchor"), weight=0.5, blank_prompt_weight=2)
    assert prior.weights == {"class-images": 0.5, "blank-prompt": 2, "weight-anchor": 0.01}


def test_a_single_name_may_stand_for_a_list():
    assert PriorConfig.model_validate({"method": "none"}).weights == {}


@pytest.mark.parametrize("flags", [("--prior.weight", "0"), ("--train.prior-weight", "0"), ("--prior.method", "none")])
def test_each_way_to_turn_the_prior_off(flags):
    assert from_flags(*flags).prior.weights == {}


def test_flags_name_several_methods_and_their_rows():
    flags = ["--prior.method", "output-preservation", "weight-anchor", "--train.prior-batch-size", "2"]
    prior = from_flags(*flags, "--prior.output-preservation-weight", "3").prior
    assert prior.weights == {"output-preservation": 3, "weight-anchor": 0.01}
    assert prior.total_rows(4) == 2


def test_terms_are_written_with_their_weights():
    config = configure({"method": ("class-images", "weight-anchor"), "outside_mask_weight": 0.5}, **MASKED)
    assert describe_terms(config.prior_terms) == "class-images 1, weight-anchor 0.01, outside-mask 0.5"
    assert describe_terms(configure({"method": "none"}).prior_terms) == "none"


# What is refused


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"prior": {"method": ("none", "weight-anchor")}},
            "--prior.method none turns every method off, and weight-anch",
        ),
        ({"prior": {"method": ("blank-prompt",) * 2}}, "--prior.method names blank-prompt twice"),
        ({"prior": {"method": "none", "weight": 0.5}}, "--prior.weight has no effect: --prior.method none has no rows"),
        ({"prior": {"method": "weight-anchor", "rows": 2}}, "--prior.rows has no effect"),
        ({"prior": {"class_images_weight": 2, "weight": 3}}, "--prior.weight has no effect: every method has a weight"),
        ({"prior": {"weight_anchor_weight": 2}}, "--prior.weight-anchor-weight is about weight-anchor, and this run"),
        ({"prior": {"class_caption": "a cat"}}, "--prior.class-caption is about output-preservation, .* class-images"),
        ({"prior": {"method": "output-preservation", "target": "frozen"}}, "--prior.target is about class-images"),
        ({"prior": {"method": "output-preservation", "class_caption": " "}}, "--prior.class-caption is empty"),
        ({"prior": {"method": "weight-anchor", "weighting": "snr"}}, "--prior.weighting is about prior rows"),
        (
            {"prior": {"outside_mask_weight": 2}},
            "--prior.outside-mask-weight only acts with --loss.outside-mask frozen",
        ),
        ({"loss": {"outside_mask": "frozen"}}, "--loss.outside-mask needs --data.masks"),
        (MASKED | {"prior": {"weight": 0}}, "--loss.outside-mask frozen has the weight 0"),
        (
            MASKED
            | {"text": {"placeholder_tokens": ("<sks>",)}, "data": {"instance_prompt": "a <sks>", "masks": True}},
            "--loss.outside-mask frozen asks the frozen model about captions with <sks>",
        ),
        ({"data": {"class_prompt": None}}, "--data.class-prompt is missing: --prior.method class-images"),
        (
            {
                "prior": {"method": "weight-anchor"},
                "text": {"placeholder_tokens": ("<sks>",), "token_training": "textual-inversion"},
                "data": {"instance_prompt": "a <sks> cat"},
            },
            "weight-anchor would teach nothing; set --prior.method none",
        ),
    ],
)
def test_a_contradiction_is_named(sections, message):
    with pytest.raises(UserError, match=message):
        check_config(configure(**sections))


@pytest.mark.parametrize("method", ["output-preservation", "blank-prompt", "weight-anchor", "none"])
def test_without_class_images_no_class_prompt_is_needed(method):
    check_config(configure({"method": method}, data={"class_prompt": None}))


def test_a_method_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(UserError, match=r"--prior\.method"):
        from_flags("--prior.method", "ewc")


# What a run says at its start


def test_one_line_says_which_term_has_which_weight_and_cost(base: BaseModel, capsys):
    config = configure({"method": ("class-images", "output-preservation", "weight-anchor"), "rows": 2})
    log_prior(config, add_trainable(base, config))
    assert (
        "prior: class-images, weight 1 (2 rows a step); output-preservation, weight 1 (2 rows a step and the frozen "
        "model's pass over them, whose copy takes 26.9 MB); weight-anchor, weight 0.01 (26.9 MB for the base model's "
        "weights)\n"
    ) in capsys.readouterr().out


def test_a_lora_needs_no_copies(base: BaseModel, capsys):
    config = configure({"method": ("blank-prompt", "weight-anchor")}, lora={"rank": 2})
    log_prior(config, add_trainable(base, config))
    assert "(1 row a step and the frozen model's pass over them); weight-anchor, weight 0.01 (no memory)" in (
        capsys.readouterr().out
    )


def test_a_run_without_a_prior_is_told_what_may_happen(base: BaseModel, capsys):
    config = configure({"method": "none"})
    log_prior(config, add_trainable(base, config))
    assert capsys.readouterr().out.strip() == "prior off: the model may forget the class"


def test_an_empty_caption_that_is_trained_and_held_is_warned_about(capsys):
    check_config(configure({"method": ("class-images", "blank-prompt")}, text={"caption_dropout": 0.1}))
    assert "--text.caption-dropout trains the empty caption" in capsys.readouterr().out
