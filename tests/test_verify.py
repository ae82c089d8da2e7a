"""An export is read back from disk and compared with what was trained, tensor by tensor."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxbooth.base.model import BaseModel
from jaxbooth.errors import RunFailure
from jaxbooth.export.lora import PEFT_FILE
from jaxbooth.weights.ldm.write import single_file_shapes

from .made_up_exports import DORA, FULL, LORA, WORDS, MadeUpRun, write_models

UNET = "unet/diffusion_pytorch_model.safetensors"
EXACT = "(names, shapes, dtypes; largest difference 0)"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def export(folders, mesh, tmp_path):
    """Exports a made-up result of a family's small model."""

    def run(family: str, format: str, dtype: str = "base", **settings) -> MadeUpRun:
        return MadeUpRun(BaseModel.read(folders[family], "float32"), mesh, tmp_path / "out", format, dtype, settings)

    return run


def edit(path: Path, change) -> None:
    """Writes a weight file anew after `change` has worked on its tensors."""
    with safe_open(path, "np") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, metadata)


# What is right


@pytest.mark.parametrize("dtype", ["base", "float32", "bfloat16"])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_all_parameters_of_all_components_are_compared_in_a_folder(export, family, dtype):
    made = export(family, "diffusers", dtype, **FULL)
    count = sum(len(made.base.module(name).shapes) for name in made.base.components)
    assert made.verify() == [f"verified {count:,} of {count:,} tensors {EXACT}"]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_all_names_of_its_family_are_compared_in_a_single_file(export, family):
    made = export(family, "single-file", "float16", **FULL)
    count = len(single_file_shapes(made.base.folder))
    assert made.verify() == [f"verified {count:,} of {count:,} tensors {EXACT}"]


@pytest.mark.parametrize("dtype", ["base", "float16"])
def test_both_files_of_a_lora_and_its_words_are_compared(export, dtype):
    made = export("sdxl", "lora", dtype, **LORA, **WORDS)
    matrices = sum(".lora_" in name for params in made.trained.values() for name in params)
    # matrices twice, kohya's alphas, and one row for each of two words in two encoders
    assert made.verify()[0].startswith(f"verified {2 * matrices + matrices // 2 + 4:,} of ")


def test_an_alpha_that_is_the_rank_leaves_nothing_to_round(export):
    made = export("sd", "lora", lora={"rank": 4})
    assert made.verify()[0].endswith(EXACT)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-6), ("float16", 1e-3)])
def test_merged_adapters_differ_by_rounding_alone_and_the_figure_is_told(export, dtype, bound):
    sentence = export("sd", "diffusers", dtype, **LORA).verify()[0]
    figure = float(sentence.split("largest difference ")[1].split(",")[0].rstrip(")"))
    assert figure <= bound
    assert sentence.endswith("rounding of the adapters)") or figure == 0


# What is wrong


def one_value(tensors) -> None:
    tensors["conv_in.weight"].flat[5] += np.float32(1e-3)


def renamed(tensors) -> None:
    tensors["conv_in.weights"] = tensors.pop("conv_in.weight")


def turned(tensors) -> None:
    tensors["conv_in.weight"] = np.ascontiguousarray(tensors["conv_in.weight"].swapaxes(0, 1))


def cast(tensors) -> None:
    tensors["conv_in.weight"] = tensors["conv_in.weight"].astype(ml_dtypes.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [(one_value, r"1 of 3\d\d tensors are not .* The first: unet/\S+: conv_in\.weight differs by up to 1e-03 "),
     (renamed, r"1 missing \(conv_in\.weight\) and 1 unknown \(conv_in\.weights\)"),
     (turned, r"conv_in\.weight' has shape \(4, 16, 3, 3\), but the configuration asks for \(16, 4, 3, 3\)"),
     (cast, r"conv_in\.weight is bfloat16 and should be float32")],
)  # fmt: skip
def test_a_tensor_that_is_not_what_was_trained_is_named(export, change, message):
    made = export("sd", "diffusers", "float32", **FULL)
    edit(made.out / UNET, change)
    with pytest.raises(RunFailure, match=message):
        made.verify()


@pytest.mark.parametrize("dtype", ["base", "float32"])
def test_an_untouched_component_must_be_the_base_models(export, dtype):
    made = export("sd", "diffusers", dtype)
    edit(made.out / "vae" / "diffusion_pytorch_model.safetensors", lambda t: t["encoder.conv_in.bias"].fill(1))
    with pytest.raises(RunFailure, match=r"vae/\S+: encoder\.conv_in\.bias differs"):
        made.verify()


def test_a_flipped_bit_in_a_single_file_is_found(export):
    made = export("sdxl", "single-file", **FULL)
    path = made.out / "out.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFailure, match=r"1 of \d+ tensors are not what was trained.* out\.safetensors: \S+ differs"):
        made.verify()


@pytest.mark.parametrize(("surplus", "message"), [(False, "is missing"), (True, "should not be there")])
def test_a_single_file_has_all_names_and_no_others(export, surplus, message):
    made, name = export("sd", "single-file", **FULL), "model.diffusion_model.out.2.bias"
    edit(made.out / "out.safetensors", lambda t: t.update(other=t[name]) if surplus else t.pop(name))
    with pytest.raises(RunFailure, match=message):
        made.verify()


@pytest.mark.parametrize(
    ("file", "ending"),
    [(PEFT_FILE, "lora_B.weight"), ("out_kohya.safetensors", "up.weight"), ("out_kohya.safetensors", ".alpha")],
)
def test_a_changed_matrix_or_alpha_of_a_lora_is_found(export, file, ending):
    made = export("sd", "lora", "float32", **LORA)

    def change(tensors) -> None:
        name = next(name for name in tensors if name.endswith(ending))
        tensors[name] = np.asarray(tensors[name] * np.float32(1.001))

    edit(made.out / file, change)
    with pytest.raises(RunFailure, match=rf"{file}: \S+lora_B\.kernel differs"):
        made.verify()


def test_a_lora_that_lost_an_adapter_is_found(export):
    made = export("sd", "lora", **DORA)
    edit(made.out / PEFT_FILE, lambda t: [t.pop(name) for name in list(t) if "mid_block" in name and "to_q" in name])
    with pytest.raises(RunFailure, match=r"mid_block\.\S+to_q\.lora_A\.kernel is missing"):
        made.verify()


def test_every_word_has_its_file_and_its_rows(export):
    made = export("sdxl", "embeddings", **WORDS)
    edit(made.out / "learned_embeds_toy.safetensors", lambda t: t.update(clip_g=t["clip_g"][::-1].copy()))
    with pytest.raises(RunFailure, match=r"1 of 4 tensors .* learned_embeds_toy\.safetensors: clip_g differs"):
        made.verify()
    (made.out / "learned_embeds_sks.safetensors").unlink()
    with pytest.raises(RunFailure, match=r"learned_embeds_sks\.safetensors cannot be read"):
        made.verify()


def test_a_file_that_is_cut_short_is_named(export):
    made = export("sd", "diffusers", **FULL)
    path = made.out / UNET
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RunFailure, match=rf"{UNET} cannot be read"):
        made.verify()


def test_values_that_float16_cannot_hold_are_no_export(export):
    made = export("sd", "diffusers", "float32", **FULL)
    made.trained["unet"]["conv_in.bias"] = made.trained["unet"]["conv_in.bias"].at[0].set(1e5)
    made.export = made.write(made.out.with_name("half"), "diffusers", "float16")
    with pytest.raises(RunFailure, match=r"conv_in\.bias holds values that are not finite in float16"):
        made.verify()
