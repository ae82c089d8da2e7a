"""LoRA files merged, resized and extracted: what the results change in a weight, what is told, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.base.model import BaseModel, load_params
from jaxbooth.cli.lora import weighted_file
from jaxbooth.cli.main import main
from jaxbooth.errors import UserError
from jaxbooth.lora_tools.extract import extract_lora
from jaxbooth.lora_tools.merge import WeightedFile, merge_loras
from jaxbooth.lora_tools.resize import resize_lora
from jaxbooth.lora_tools.structure import read_files
from jaxbooth.lora_tools.svd import total_error, truncate, truncate_product
from jaxbooth.models.adapter_kinds import LoraSpec
from jaxbooth.models.lora import lora_shapes, merge
from jaxbooth.models.lora_targets import target_layers
from jaxbooth.weights.diffusers_write import write_folder
from jaxbooth.weights.lora.adapters import LoraWeights, to_adapters
from jaxbooth.weights.lora.write import write_kohya, write_peft
from jaxbooth.weights.lora.write_lycoris import write_lycoris

LINEAR, CONV = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"
FILE = Path("a.safetensors")


def changes(lora: LoraWeights) -> dict[str, np.ndarray]:
    """Layer -> what is added to its weight, (outputs, inputs * window), float64."""
    found = {}
    for adapter in to_adapters(lora):
        up, down = (value.reshape(len(value), -1).astype(np.float64) for value in (adapter.lora_b, adapter.lora_a))
        found[f"{adapter.component}.{adapter.module}"] = adapter.alpha / adapter.rank * up @ down
    return found


def made_up(rank: int, alpha: float, layers=(LINEAR, CONV), seed: int = 0, kind: str = "lora") -> LoraWeights:
    """Adapters of the demo's UNet."""
    base, rng = BaseModel.read(DEMO_MODEL, "float32"), np.random.default_rng(seed)
    shapes = lora_shapes(base.denoiser, list(layers), LoraSpec(rank, 1.0, kind))
    adapters = {f"unet.{name}": rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    return LoraWeights(adapters, {f"unet.{layer}": alpha for layer in layers})


def check_changes(found: LoraWeights, expected: dict[str, np.ndarray], error: float) -> None:
    assert changes(found).keys() == expected.keys()
    for layer, value in changes(found).items():
        assert np.abs(value - expected[layer]).max() <= error * np.abs(expected[layer]).max()


# Merging


def test_a_merge_is_the_weighted_sum_of_its_files():
    first, second = made_up(3, 6.0), made_up(2, 1.0, (CONV,), seed=1)
    merged = merge_loras([WeightedFile(FILE, 0.7), WeightedFile(FILE, -0.5)], [first, second])
    expected = {layer: 0.7 * value for layer, value in changes(first).items()}
    expected[f"unet.{CONV}"] -= 0.5 * changes(second)[f"unet.{CONV}"]
    check_changes(merged, expected, 1e-6)
    ranks = {adapter.module: (adapter.rank, adapter.alpha) for adapter in to_adapters(merged)}
    assert ranks == {LINEAR: (3, 3.0), CONV: (5, 5.0)}


@pytest.mark.parametrize(("kind", "message"), [
    ("dora", "is a DoRA: its magnitudes belong to one change.*jaxbooth lora extract"),
    ("loha", "is a LoHa, whose sum with others is none; make a LoRA of it first.*jaxbooth lora resize"),
])  # fmt: skip
def test_what_is_no_sum_of_products_is_not_merged(kind, message):
    with pytest.raises(UserError, match=message):
        merge_loras([WeightedFile(FILE, 1.0)], [made_up(2, 2.0, kind=kind)])


@pytest.mark.parametrize(("text", "expected"), [
    ("a.safetensors:0.7", ("a.safetensors", 0.7)), ("a.safetensors", ("a.safetensors", 1.0)),
    ("b:2/a.safetensors", ("b:2/a.safetensors", 1.0)), ("a:-1e-1", ("a", -0.1)),
])  # fmt: skip
def test_a_weight_stands_behind_the_last_colon(text, expected):
    assert weighted_file(text) == WeightedFile(Path(expected[0]), expected[1])


# Singular values


def test_what_is_left_out_are_the_small_singular_values(rng):
    matrix = rng.normal(size=(30, 20)).astype(np.float32)
    values = np.linalg.svd(matrix.astype(np.float64))[1]
    found = truncate(matrix, 7)
    assert found.squared_error == pytest.approx(np.sum(values[7:] ** 2), rel=1e-5)
    assert found.squared_norm == pytest.approx(np.sum(values**2), rel=1e-5)
    assert np.sum((matrix - found.lora_b @ found.lora_a) ** 2) == pytest.approx(found.squared_error, rel=1e-4)


def test_a_large_matrix_of_low_rank_loses_nothing(rng):
    matrix = (rng.normal(size=(1300, 5)) @ rng.normal(size=(5, 1100))).astype(np.float32)
    found = truncate(matrix, 5)
    assert np.sqrt(found.squared_error / found.squared_norm) < 1e-5


def test_a_large_matrix_is_nearly_as_near_as_can_be(rng):
    matrix = (rng.normal(size=(1200, 1100)) * 0.9 ** np.arange(1100)).astype(np.float32)
    values = np.linalg.svd(matrix, compute_uv=False)
    assert truncate(matrix, 8).squared_error < 1.001 * np.sum(values[8:].astype(np.float64) ** 2)


def test_a_product_need_not_be_formed(rng):
    up, down = rng.normal(size=(40, 6)).astype(np.float32), rng.normal(size=(6, 50)).astype(np.float32)
    formed, found = truncate(up @ down, 3), truncate_product(up, down, 3)
    np.testing.assert_allclose(found.lora_b @ found.lora_a, formed.lora_b @ formed.lora_a, atol=1e-4)
    assert found.squared_error == pytest.approx(formed.squared_error, rel=1e-4)


def test_a_product_of_zeros_stays_one():
    found = truncate_product(np.zeros((6, 3), "f4"), np.ones((3, 5), "f4"), 2)
    assert not (found.lora_b @ found.lora_a).any()
    assert (found.squared_error, found.squared_norm) == (0, 0)


# Resizing


def test_a_resized_lora_is_as_far_away_as_is_told():
    lora = made_up(6, 3.0)
    resized, errors = resize_lora(FILE, lora, 4)
    before, after = changes(lora), changes(resized)
    left_out = sum(np.sum((before[layer] - after[layer]) ** 2) for layer in before)
    assert total_error(errors) == pytest.approx(
        np.sqrt(left_out / sum(np.sum(v**2) for v in before.values())), rel=1e-4
    )
    assert {adapter.rank for adapter in to_adapters(resized)} == {4}


def test_a_rank_that_a_layer_has_leaves_it_bit_for_bit():
    lora = made_up(4, 3.0)
    resized, errors = resize_lora(FILE, lora, 8)
    assert all(np.array_equal(value, lora.adapters[name]) for name, value in resized.adapters.items())
    assert resized.alphas == lora.alphas
    assert total_error(errors) == 0


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_a_loha_or_lokr_of_low_rank_becomes_a_lora(kind):
    lora = made_up(2, 1.0, kind=kind)
    resized, errors = resize_lora(FILE, lora, 64)
    assert total_error(errors) < 1e-5
    base = BaseModel.read(DEMO_MODEL, "float32")
    kernels = {
        f"{layer}.kernel": np.zeros(base.denoiser.shapes[f"{layer}.kernel"].shape, "f4") for layer in (LINEAR, CONV)
    }
    adapters = {name.removeprefix("unet."): value for name, value in lora.adapters.items()}
    merged = merge(kernels | adapters, LoraSpec(2, 0.5, kind))
    for layer, value in changes(resized).items():
        kernel = np.asarray(merged[f"{layer.removeprefix('unet.')}.kernel"])
        expected = np.moveaxis(kernel, (-1, -2), (0, 1)).reshape(kernel.shape[-1], -1)
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# Extracting


@pytest.fixture(scope="module")
def merged_model(tmp_path_factory, mesh):
    """The demo with a LoRA of rank 3 in some of its kernels, and the LoRA."""
    base = BaseModel.read(DEMO_MODEL, "float32")
    layers = target_layers(base.denoiser, "unet", r"unet\.mid_block\..*(to_q|conv1|ff\.net\.2)")
    lora = made_up(3, 3.0, layers)
    lora = lora._replace(adapters={name: 0.1 * value for name, value in lora.adapters.items()})
    unet = load_params(base, mesh, ("unet",))["unet"]
    adapters = {name.removeprefix("unet."): value for name, value in lora.adapters.items()}
    out = tmp_path_factory.mktemp("model") / "merged"
    out.mkdir()
    write_folder(DEMO_MODEL, {"unet": merge(unet | adapters, LoraSpec(3, 1.0))}, out, "float32")
    return out, lora


def test_a_merged_lora_is_found_again(merged_model):
    folder, lora = merged_model
    found = extract_lora(BaseModel.read(folder, "float32"), BaseModel.read(DEMO_MODEL, "float32"), 3)
    check_changes(found.lora, changes(lora), 1e-5)
    assert total_error(found.errors) < 1e-5
    assert found.lost == []


def test_a_lower_rank_leaves_the_error_that_is_told(merged_model):
    folder, lora = merged_model
    found = extract_lora(BaseModel.read(folder, "float32"), BaseModel.read(DEMO_MODEL, "float32"), 1)
    before, after = changes(lora), changes(found.lora)
    left_out = sum(np.sum((before[layer] - after[layer]) ** 2) for layer in before)
    expected = np.sqrt(left_out / sum(np.sum(value**2) for value in before.values()))
    assert total_error(found.errors) == pytest.approx(expected, rel=1e-3)


def test_equal_models_have_nothing_to_extract():
    base = BaseModel.read(DEMO_MODEL, "float32")
    with pytest.raises(UserError, match="have the same weights in every layer; nothing to extract"):
        extract_lora(base, base, 4)


# The commands


def write(folder: Path, lora: LoraWeights, layout: str, name: str = "in") -> Path:
    path, base = folder / f"{name}.safetensors", BaseModel.read(DEMO_MODEL, "float32")
    if layout == "peft":
        write_peft(path, lora, {})
    elif layout == "kohya":
        write_kohya(path, lora, base.denoiser_config, {})
    else:
        write_lycoris(path, lora, {"unet": base.denoiser}, base.denoiser_config, {})
    return path


@pytest.mark.parametrize("format", ["peft", "kohya"])
def test_files_of_both_layouts_are_merged_into_one_of_either(format, tmp_path, capsys):
    first, second = made_up(3, 6.0), made_up(2, 1.0, seed=1)
    paths = [write(tmp_path, first, "peft", "a"), write(tmp_path, second, "kohya", "b")]
    out = tmp_path / "c.safetensors"
    main(
        [
            "lora",
            "merge",
            f"{paths[0]}:0.7",
            f"{paths[1]}:0.5",
            "--output",
            str(out),
            "--base",
            "demo",
            "--format",
            format,
        ]
    )
    assert f"merged 2 files into {out}: 2 layers of rank 5" in capsys.readouterr().out
    assert any("lora_down" in name for name in load_file(out)) == (format == "kohya")
    expected = {layer: 0.7 * value + 0.5 * changes(second)[layer] for layer, value in changes(first).items()}
    [found], _ = read_files([out], "demo")
    check_changes(found, expected, 1e-6)


def test_a_resize_tells_its_error(tmp_path, capsys):
    path, out = write(tmp_path, made_up(2, 1.0, kind="lokr"), "lycoris"), tmp_path / "out.safetensors"
    errors = tmp_path / "errors.json"
    main(["lora", "resize", str(path), "--rank", "4", "--out", str(out), "--base", "demo", "--errors", str(errors)])
    printed = capsys.readouterr().out
    told = json.loads(errors.read_text())
    assert f"relative error {told['relative_error']:.2g} in all; largest: unet." in printed
    assert told["layers"].keys() == {f"unet.{LINEAR}", f"unet.{CONV}"}


def test_an_extract_is_written(merged_model, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    main(["lora", "extract", str(merged_model[0]), "--base", "demo", "--rank", "3", "--out", str(out)])
    assert "layers of rank 3" in capsys.readouterr().out
    [found], _ = read_files([out], "demo")
    check_changes(found, changes(merged_model[1]), 1e-5)


@pytest.mark.parametrize(("arguments", "message"), [
    (["merge", "in.safetensors", "--out", "in.safetensors"], "in.safetensors exists already, and no file is over"),
    (["resize", "in.safetensors", "--rank", "2", "--out", "new.bin"], "new.bin is no .safetensors file; name one"),
    (["resize", "none.safetensors", "--rank", "2", "--out", "new.safetensors", "--base", "demo"], "none.safetensors"),
    (["merge", "in.safetensors:1e9", "--out", "new.safetensors"], "its weight is 1e+09"),
    (["merge", "--out", "new.safetensors"], "jaxbooth lora merge needs files"),
    (["mix"], "jaxbooth lora has no command 'mix'; choose merge, resize, extract"),
])  # fmt: skip
def test_bad_input_is_one_sentence(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, made_up(2, 2.0), "peft")
    before = (tmp_path / "in.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        main(["lora", *arguments])
    assert message in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "in.safetensors").read_bytes() == before
    assert not (tmp_path / "new.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("block", "context"), [("down_blocks_1_attentions_0", 768), ("input_blocks_4_1", 2048)])
def test_a_published_model_is_found_by_the_layers_of_a_file(block, context, tmp_path, rng):
    name = f"lora_unet_{block}_transformer_blocks_0_attn2_to_k"
    down, up = rng.normal(size=(2, context)).astype("f4"), rng.normal(size=(640, 2)).astype("f4")
    path = tmp_path / "lora.safetensors"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, path)
    [lora], structure = read_files([path], None)
    assert structure.config.cross_attention_dim == context
    assert len(lora.alphas) == 1


def test_a_file_for_another_base_model_is_named(tmp_path):
    first, lora = write(tmp_path, made_up(2, 2.0), "peft"), made_up(2, 2.0)
    wide = {
        name: np.ones((*value.shape[:-2], 2048, 2), "f4") if "lora_A" in name else value
        for name, value in lora.adapters.items()
    }
    other = write(tmp_path, lora._replace(adapters=wide), "peft", "other")
    with pytest.raises(UserError, match=r"other.safetensors: .* but this base model asks for"):
        read_files([first, other], "demo")
