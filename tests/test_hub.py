"""Fetching from the Hub, against a loopback server."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxbooth.assets import DEMO_MODEL
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.weights.hub import download

pytest_plugins = ["tests.hub_server"]

INDEX = "model_index.json"
UNET, FP16 = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"
WEIGHTS = {UNET, "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"}
CONFIGURATIONS = {
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json",
}  # fmt: skip
CLUTTER = dict.fromkeys(
    ["README.md", "sd.safetensors", "sd.ckpt", "unet/diffusion_pytorch_model.bin", "unet/model.onnx",
     "unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_flax_model.msgpack", "unet/openvino_model.bin",
     "text_encoder/pytorch_model.bin", "text_encoder/model.safetensors.index.json", "vae_decoder/model.onnx",
     "safety_checker/model.safetensors", "safety_checker/config.json", "feature_extractor/preprocessor_config.json"],
    b"not needed",
)  # fmt: skip


@pytest.fixture
def served(hub):
    """The embedded model as a/model, with what else repositories hold; revision v1 has one variant."""
    hub.serve("a/model", DEMO_MODEL, **CLUTTER)
    hub.serve("a/model", DEMO_MODEL, "v1", **{FP16: b"half"})
    return hub


def fetch(repo="a/model", revision=None, variant=None, offline=False, allow_pickle=False, vae_only=False) -> Path:
    return download(repo, revision, variant, offline, allow_pickle, vae_only)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What is fetched


def test_only_what_is_read_is_fetched_and_each_file_once(served):
    folder = fetch()
    assert set(served.fetched) == WEIGHTS | CONFIGURATIONS
    assert set(served.fetched.values()) == {1}
    assert contents(folder) == {name: (DEMO_MODEL / name).read_bytes() for name in WEIGHTS | CONFIGURATIONS}


def test_what_is_cached_is_not_fetched_again(served, capsys):
    folder = fetch()
    assert "fetching 11 of 12 files, 0.0" in capsys.readouterr().out
    served.requests.clear()
    assert fetch() == folder
    assert not served.fetched
    assert "fetching" not in capsys.readouterr().out


def test_a_variant_replaces_the_weights_of_those_components_that_have_it(served):
    fetch(revision="v1", variant="fp16")
    assert set(served.fetched) == (WEIGHTS - {UNET} | {FP16} | CONFIGURATIONS)


def test_the_plain_weights_are_fetched_where_no_variant_is_asked_for(served):
    fetch(revision="v1")
    assert set(served.fetched) == WEIGHTS | CONFIGURATIONS


def test_the_only_variant_there_is_is_fetched(served):
    served.serve("a/half", DEMO_MODEL, **{UNET: None, FP16: b"half"})
    assert (fetch("a/half") / FP16).read_bytes() == b"half"


def test_shards_are_fetched_with_their_index(served):
    shards = {f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors": bytes([i]) for i in (1, 2)}
    served.serve("a/sharded", DEMO_MODEL, **{UNET: None, f"{UNET}.index.json": b"{}"} | shards)
    fetch("a/sharded")
    found = {name for name in served.fetched if name.startswith("unet/")}
    assert found == {f"{UNET}.index.json", *shards, "unet/config.json"}


def test_pickles_are_fetched_only_where_there_are_no_safetensors_and_when_asked_for(served):
    pickle = "unet/diffusion_pytorch_model.bin"
    served.serve("a/old", DEMO_MODEL, **{UNET: None, pickle: b"pickle", "vae/diffusion_pytorch_model.bin": b"pickle"})
    with pytest.raises(UserError, match=rf"model a/old has {pickle} and no safetensors.* pass --allow-pickle"):
        fetch("a/old")
    assert set(served.fetched) == {INDEX}
    fetch("a/old", allow_pickle=True)
    assert {name for name in served.fetched if name.endswith((".safetensors", ".bin"))} == WEIGHTS - {UNET} | {pickle}


@pytest.mark.parametrize(("repo", "inside"), [("a/model", "vae"), ("a/vae", "")])
def test_a_vae_comes_alone_from_a_model_or_from_a_repository_of_its_own(served, repo, inside):
    served.serve("a/vae", DEMO_MODEL / "vae", **{"vae-pruned.safetensors": b"the same in another layout"})
    folder = fetch(repo, vae_only=True)
    assert set(contents(folder / inside)) == {"config.json", "diffusion_pytorch_model.safetensors"}
    assert len(served.fetched) == 2


def test_another_revision_is_another_folder_that_shares_equal_files(served):
    first = fetch()
    served.requests.clear()
    second = fetch(revision="v1", variant="fp16")
    assert first != second
    assert set(served.fetched) == {FP16}
    assert any(path.endswith("/revision/v1") for _, path, _ in served.requests)


# Transfers that fail


def test_a_transfer_that_is_cut_goes_on_where_it_was(served):
    served.drop_after[UNET] = 11_000_000
    folder = fetch()
    # huggingface_hub writes in pieces of 10 MiB
    gets = [headers for method, path, headers in served.requests if method == "GET" and path.endswith(UNET)]
    assert [headers.get("range") for headers in gets] == [None, "bytes=10485760-"]
    assert (folder / UNET).read_bytes() == (DEMO_MODEL / UNET).read_bytes()


def test_a_transfer_that_fails_is_completed_by_the_same_command_without_fetching_the_rest_again(served):
    served.drop_after[UNET], served.reset = 100_000, True
    with pytest.raises(RunFailure, match=r"model a/model: the transfer broke off .*run the same command again"):
        fetch()
    folder = fetch()
    assert served.fetched.pop(UNET) == 2
    assert contents(folder) == {name: (DEMO_MODEL / name).read_bytes() for name in WEIGHTS | CONFIGURATIONS}


def test_a_disk_without_room_is_named_before_anything_is_fetched(served, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(RunFailure, match=r"model a/model needs 0\.\d+ GB in .* make room, or set HF_HOME"):
        fetch()
    assert set(served.fetched) == {INDEX}


# Refusals


def test_a_gated_model_names_where_its_licence_is_accepted(served, monkeypatch):
    served.gated.add("a/model")
    with pytest.raises(
        UserError, match=rf"licence to be accepted: do so at {served.url}/a/model, then run `hf auth login"
    ):
        fetch()
    monkeypatch.setenv("HF_TOKEN", served.token)
    assert contents(fetch())


def test_a_token_that_is_not_valid_is_named_and_not_shown(served, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(UserError, match=r"the Hub refused the token .*HF_TOKEN") as error:
        fetch()
    assert "hf_expired" not in str(error.value)


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [("a/nothing", None, "model a/nothing is neither a local path nor on the Hub, or it is private"),
     ("a/model", "v9", "model a/model has no revision v9; name a branch, a tag or a commit"),
     ("a/mo..del", None, "model a/mo..del is not a name on the Hub: Cannot have -- or ..")],
)  # fmt: skip
def test_what_does_not_exist_is_named(served, repo, revision, message):
    with pytest.raises(UserError, match=message):
        fetch(repo, revision)


@pytest.mark.parametrize(
    ("files", "variant", "message"),
    [({}, "bf16", r"model a/odd has no variant bf16; it has fp16\."),
     ({UNET: None, FP16.replace("fp16", "ema"): b""}, None, "the variants ema and fp16; choose one with --variant"),
     ({UNET: None, FP16: None, "unet/model.onnx": b""}, None, "no usable weights in unet/; it holds .*unet/, vae/"),
     ({"model_index.json": None, "all.safetensors": b""}, None, r"no diffusers model; .*its name \(/all.safetensors")],
)  # fmt: skip
def test_a_repository_without_usable_weights_says_what_it_holds(served, files, variant, message):
    served.serve("a/odd", DEMO_MODEL, **{FP16: b"half", **files})
    with pytest.raises(UserError, match=message):
        fetch("a/odd", variant=variant)
    assert set(served.fetched) <= {INDEX}


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("FluxPipeline", "FLUX.1"),
        ("Flux2Pipeline", "FLUX.2 dev"),
        ("Flux2KleinInpaintPipeline", "an editing or inpainting pipeline of FLUX.2"),
        ("ZImageOmniPipeline", "Z-Image Omni"),
        ("QwenImagePipeline", "Qwen-Image"),
        ("StableDiffusionXLImg2ImgPipeline", "the SDXL refiner"),
        ("StableDiffusionInpaintPipeline", "an inpainting model"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_name_before_its_weights_are_fetched(served, kind, name, offline):
    index = json.dumps({"_class_name": kind}).encode()
    served.serve("a/other", DEMO_MODEL, **{INDEX: index, UNET: None, "transformer/model.safetensors": b"gigabytes"})
    for again in (False, offline):
        with pytest.raises(UserError) as error:
            fetch("a/other", offline=again)
        assert f"a/other/{INDEX}: {name} ({kind}) is not supported" in str(error.value)
    assert served.fetched == {INDEX: 1}
