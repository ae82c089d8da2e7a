"""What `train-many` saves of the subjects in its slots."""

import jax.numpy as jnp
import numpy as np

from jaxbooth.many.saves import find_saved, read_all_saved, save_subjects
from jaxbooth.training.state import TrainState


def state(step: int, fill: float) -> TrainState:
    """A small state with leaves of several dtypes."""
    params = {"unet.a.lora_A.kernel": np.full((3, 2), fill, np.float32)}
    moments = (np.full(3, fill, jnp.bfloat16), np.array(step, np.int32))
    return TrainState(np.array(step, np.int32), params, moments, {})


def check_same(found: TrainState, expected: TrainState) -> None:
    assert int(found.step) == int(expected.step)
    np.testing.assert_array_equal(found.params["unet.a.lora_A.kernel"], expected.params["unet.a.lora_A.kernel"])
    assert found.opt_state[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.opt_state[0], expected.opt_state[0])


def test_every_state_comes_back_as_it_was(tmp_path):
    states = {"mug": state(3, 0.1), "cup": state(7, 0.3)}
    save_subjects(tmp_path / "shard.safetensors", states)
    found = read_all_saved(tmp_path, ["mug", "cup"], state(0, 0))
    assert found.keys() == states.keys()
    for name, expected in states.items():
        check_same(found[name], expected)


def test_of_several_files_the_furthest_state_counts(tmp_path):
    save_subjects(tmp_path / "a.safetensors", {"mug": state(3, 0.1)})
    save_subjects(tmp_path / "b.safetensors", {"mug": state(5, 0.2), "cup": state(1, 0.3)})
    assert {name: saved.step for name, saved in find_saved(tmp_path).items()} == {"mug": 5, "cup": 1}
    check_same(read_all_saved(tmp_path, ["mug"], state(0, 0))["mug"], state(5, 0.2))


def test_a_flipped_bit_costs_one_subject(tmp_path, capsys):
    path = tmp_path / "shard.safetensors"
    save_subjects(path, {"mug": state(3, 0.1), "cup": state(7, 0.3)})
    content = bytearray(path.read_bytes())
    place = bytes(content).index(np.float32(0.3).tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert read_all_saved(tmp_path, ["mug", "cup"], state(0, 0)).keys() == {"mug"}
    assert "the state of cup is damaged; cup begins anew" in capsys.readouterr().out


def test_a_file_that_is_none_is_reported_and_left(tmp_path, capsys):
    (tmp_path / "shard.safetensors").write_bytes(b"torn")
    assert find_saved(tmp_path) == {}
    assert "shard.safetensors cannot be read" in capsys.readouterr().out


def test_states_of_another_shape_begin_anew(tmp_path, capsys):
    save_subjects(tmp_path / "shard.safetensors", {"mug": state(3, 0.1)})
    other = state(0, 0)._replace(params={"unet.a.lora_A.kernel": np.zeros((5, 2), np.float32)})
    assert read_all_saved(tmp_path, ["mug"], other) == {}
    assert "is damaged" in capsys.readouterr().out
