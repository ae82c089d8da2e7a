"""Learning rates follow what is trained, and a rate that the user sets goes first."""

import pytest
import yaml

from jaxbooth.config.load import load_config
from jaxbooth.config.rates import learning_rates, peak_learning_rate
from jaxbooth.config.run_config import Config
from jaxbooth.runs.start_notes import describe_length
from jaxbooth.training.optimizer import learning_rate_schedule

ALONE = {
    "text": {"placeholder_tokens": ("<sks>",), "token_training": "textual-inversion"},
    "prior": {"weight": 0.0},
}


def changed(source: str | None, **sections: dict) -> Config:
    """A configuration with sections changed key by key."""
    raw = load_config(source).model_dump(mode="json")
    return Config.model_validate(raw | {name: raw[name] | values for name, values in sections.items()})


@pytest.mark.parametrize(("source", "lora", "expected"), [
    (None, None, 5e-6), (None, 16, 1e-4),
    ("demo", None, 2e-4), ("demo", 16, 2e-3), ("demo", 4, 2e-3),
    ("sd15", None, 5e-6), ("sd15", 8, 1e-4), ("sd21", 64, 1e-4),
    ("sd15-lora", 16, 1e-4), ("sd15-lora", None, 5e-6), ("sdxl-lora", 16, 1e-4), ("sdxl-lora", None, 5e-6),
])  # fmt: skip
def test_the_default_rate_is_that_of_what_is_trained(source, lora, expected):
    config = changed(source, lora={"rank": lora})
    assert peak_learning_rate(config) == expected
    assert learning_rate_schedule(config.train, learning_rates(config))(0) == pytest.approx(expected)


@pytest.mark.parametrize("source", ["demo", "sd15", "sd15-lora", "sdxl-lora"])
@pytest.mark.parametrize("rank", [None, 16])
def test_a_rate_that_is_set_holds_whatever_is_trained(source, rank):
    config = changed(source, lora={"rank": rank}, train={"learning_rate": 3e-5}, text={"learning_rate": 1e-6})
    assert (peak_learning_rate(config), peak_learning_rate(config, "text")) == (3e-5, 1e-6)


def test_a_rate_in_a_file_of_the_users_own_holds_for_a_lora_too(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump({"train": {"learning_rate": 7e-6}, "lora": {"rank": 8}}))
    assert peak_learning_rate(load_config(path)) == 7e-6


@pytest.mark.parametrize("source", ["demo", "sd15", "sd15-lora", "sdxl-lora"])
def test_prodigy_scales_its_rate_by_one_under_every_shipped_configuration(source):
    config = changed(source, train={"optimizer": "prodigy"})
    assert [peak_learning_rate(config, group) for group in ("denoiser", "text", "tokens")] == [1, 1, 1]


def test_the_text_encoder_is_trained_at_the_unets_rate_unless_it_has_its_own():
    assert peak_learning_rate(changed("demo"), "text") == 2e-4
    assert peak_learning_rate(changed("demo", lora={"rank": 4}), "text") == 2e-3
    assert peak_learning_rate(changed("demo", text={"learning_rate": 1e-5}), "text") == 1e-5


def test_new_words_have_a_rate_of_their_own():
    assert peak_learning_rate(changed("sd15"), "tokens") == peak_learning_rate(changed(None), "tokens") == 5e-4
    assert peak_learning_rate(changed("demo"), "tokens") == 2e-2
    assert peak_learning_rate(changed("demo", text={"token_learning_rate": 1e-3}), "tokens") == 1e-3


@pytest.mark.parametrize(("sections", "expected"), [
    ({}, "250 steps x (4 + 4) rows = 1000 instance views, 200 views of each image; learning rate 0.0002"),
    ({"lora": {"rank": 16}}, "200 views of each image; learning rate 0.002"),
    ({"lora": {"rank": 16, "b_rate_ratio": 16}}, "learning rate 0.002, of matrices B 0.032"),
    (ALONE, "250 steps x (4 + 0) rows = 1000 instance views, 200 views of each image; learning rate 0.02"),
    ({"train": {"steps": 1}}, "1 steps x (4 + 4) rows = 4 instance views, 0.8 views of each image"),
])  # fmt: skip
def test_the_start_says_how_often_each_image_is_seen_and_the_rate(sections, expected):
    assert expected in describe_length(changed("demo", **sections), 5)
