"""Pickles that hold themselves, are nested, or are no plain tensors end in one sentence and take no memory."""

import io
import zipfile

import pytest
import torch

from jaxbooth.errors import UserError
from jaxbooth.weights.pickles import convert_pickle, load_pickle


def stored(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def crafted(program: bytes) -> bytes:
    """A file of PyTorch's format with a pickle program of one's own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + program)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def holding_itself() -> dict:
    state: dict = {}
    state["state_dict"] = state
    return state


NESTED = b"}" + b"X\x0a\x00\x00\x00state_dict"


@pytest.fixture
def refusal(tmp_path):
    """Returns why a pickle is refused."""

    def read(content: bytes) -> str:
        path = tmp_path / "model.ckpt"
        path.write_bytes(content)
        with pytest.raises(UserError) as refused:
            convert_pickle(path, tmp_path / "model.safetensors")
        assert not (tmp_path / "model.safetensors").exists()
        assert str(refused.value).startswith(f"{path}")
        assert len(str(refused.value).removeprefix(str(path))) < 400
        return str(refused.value)

    return read


@pytest.mark.parametrize(
    "content", [stored(holding_itself()), crafted(NESTED * 50_000 + b"}" + b"s" * 50_000 + b".")], ids=["self", "deep"]
)
def test_a_state_dict_within_itself_ends(refusal, content):
    assert "holds a state_dict within a state_dict, and so on" in refusal(content)


def test_a_list_that_holds_itself_is_no_state_dict(refusal):
    itself: list = []
    itself.append(itself)
    assert "holds a list; expected a dictionary of tensors" in refusal(stored(itself))


def test_tensors_two_dictionaries_deep_are_found_and_what_holds_itself_beside_them_is_left(tmp_path):
    state: dict = {"w": torch.ones(2)}
    state["again"] = state
    (tmp_path / "model.ckpt").write_bytes(stored({"state_dict": {"state_dict": state}}))
    assert load_pickle(tmp_path / "model.ckpt")["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("expanded", torch.zeros(1).expand(10**6, 10**6)),
        ("meta", torch.zeros(2, device="meta")),
        ("sparse", torch.eye(4).to_sparse()),
        (5, torch.zeros(2)),
    ],
)
def test_what_is_no_plain_named_tensor_is_named(refusal, name, tensor):
    assert f"{name!r} is not a plain tensor" in refusal(stored({name: tensor}))


@pytest.mark.parametrize(
    "program", [b"t.", b"s.", b"h\x05.", b"Q.", b"\x8b\xff\xff\xff\x7f.", b"ccollections\nOrderedDict\n(K\x01tR."]
)
def test_a_program_that_is_no_sound_pickle_cannot_be_read(refusal, program):
    assert "cannot be read (" in refusal(crafted(program))


def test_the_message_does_not_advise_to_run_code(refusal):
    message = refusal(crafted(b"cos\nsystem\n(X\x04\x00\x00\x00truetR."))
    assert "weights_only" not in message
    assert "holds more than tensors" in message


def test_a_whole_module_is_refused_without_pytorchs_advice_to_run_it(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.ckpt")
    with pytest.raises(UserError) as raised:
        load_pickle(tmp_path / "model.ckpt")
    assert "weights_only" not in str(raised.value)
    assert "options" not in str(raised.value)
    assert str(raised.value).endswith("it is damaged or holds more than tensors, use a .safetensors file.")
