"""Base models that cannot be used: each is named with what is wrong."""

import shutil

import pytest

from tests.cli.arguments import contents, train

# Base models


@pytest.mark.parametrize("prior", [("--train.prior-weight", "1"), ("--train.prior-weight", "0")])
def test_a_model_with_pickled_weights_alone_says_how_to_convert_them(refused, dog, model, prior):
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")
    before = contents(model)
    error = refused(*train(dog, "--model", model, *prior))
    assert "diffusion_pytorch_model.bin is not safetensors" in error
    assert "save_pretrained" in error
    assert contents(model) == before


@pytest.mark.parametrize("length", [0, 100, 1_000_000])
def test_truncated_weights_are_named(refused, dog, model, length):
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    before = contents(model)
    assert f"{path} cannot be read" in refused(*train(dog, "--model", model))
    assert contents(model) == before


def test_truncated_weights_are_named_when_sampling(refused, model):
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path} cannot be read" in refused("sample", model, "--prompt", "a dog")


def test_a_model_without_weights_is_named(refused, dog, model):
    (model / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "vae holds no .safetensors file" in refused(*train(dog, "--model", model))


def test_a_single_file_is_no_model(refused, dog, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    error = refused(*train(dog, "--model", tmp_path / "model.safetensors"))
    assert "model.safetensors is a file" in error
    assert "diffusers" in error


def test_a_folder_that_is_no_model_says_what_is_missing(refused, dog, tmp_path):
    (tmp_path / "photos").mkdir()
    assert "model_index.json is missing" in refused(*train(dog, "--model", tmp_path / "photos"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_class_name": "FluxPipeline"}'])
def test_a_model_index_of_something_else_is_named(refused, dog, model, text):
    (model / "model_index.json").write_text(text)
    assert "model_index.json" in refused(*train(dog, "--model", model))


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_a_component_without_its_configuration_is_named(refused, dog, model, component):
    (model / component / "config.json").unlink()
    assert f"{component}/config.json is missing" in refused(*train(dog, "--model", model))


def test_a_model_without_a_tokenizer_is_named(refused, dog, model):
    shutil.rmtree(model / "tokenizer")
    assert "tokenizer" in refused(*train(dog, "--model", model))


def test_weights_of_another_shape_are_named(refused, dog, model):
    text = (model / "unet" / "config.json").read_text()
    (model / "unet" / "config.json").write_text(text.replace('"layers_per_block": 1', '"layers_per_block": 2'))
    assert text != (model / "unet" / "config.json").read_text()
    assert "unet" in refused(*train(dog, "--model", model))


def test_a_hub_that_cannot_be_reached_is_a_failure_and_no_bad_input(refused, dog):
    assert "nobody/nothing" in refused(*train(dog, "--model", "nobody/nothing"), code=1)
