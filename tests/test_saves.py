"""What `train-many` saves of the subjects in its slots."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxbooth.config.load import load_config
from jaxbooth.many.saves import SubjectState, find_saved, read_all_saved, run_identity, save_subjects
from jaxbooth.training.state import TrainState


def state(step: int, fill: float) -> TrainState:
    """A small state with leaves of several dtypes."""
    params = {"unet.a.lora_A.kernel": np.full((3, 2), fill, np.float32)}
    moments = (np.full(3, fill, jnp.bfloat16), np.array(step, np.int32))
    return TrainState(np.array(step, np.int32), params, moments, {})


def save(path: Path, states: dict[str, TrainState], identity: str = "a") -> None:
    save_subjects(path, {name: SubjectState(identity, value) for name, value in states.items()})


def read(folder: Path, *names: str, example: TrainState | None = None) -> dict[str, TrainState]:
    found = read_all_saved(folder, dict.fromkeys(names, "a"), example or state(0, 0))
    return {name: saved.state for name, saved in found.items()}


def check_same(found: TrainState, expected: TrainState) -> None:
    assert int(found.step) == int(expected.step)
    np.testing.assert_array_equal(found.params["unet.a.lora_A.kernel"], expected.params["unet.a.lora_A.kernel"])
    assert found.opt_state[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found.opt_state[0], expected.opt_state[0])


def test_every_state_comes_back_as_it_was(tmp_path):
    states = {"mug": state(3, 0.1), "cup": state(7, 0.3)}
    save(tmp_path / "shard.safetensors", states)
    found = read(tmp_path, "mug", "cup")
    assert found.keys() == states.keys()
    for name, expected in states.items():
        check_same(found[name], expected)


def test_of_several_files_the_furthest_state_counts(tmp_path):
    save(tmp_path / "a.safetensors", {"mug": state(3, 0.1)})
    save(tmp_path / "b.safetensors", {"mug": state(5, 0.2), "cup": state(1, 0.3)})
    assert {name: saved.step for name, saved in find_saved(tmp_path).items()} == {"mug": 5, "cup": 1}
    check_same(read(tmp_path, "mug")["mug"], state(5, 0.2))


def test_a_flipped_bit_costs_one_subject(tmp_path, capsys):
    path = tmp_path / "shard.safetensors"
    save(path, {"mug": state(3, 0.1), "cup": state(7, 0.3)})
    content = bytearray(path.read_bytes())
    place = bytes(content).index(np.float32(0.3).tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert read(tmp_path, "mug", "cup").keys() == {"mug"}
    assert "the state of cup is damaged; cup begins anew" in capsys.readouterr().out


def test_a_file_that_is_none_is_reported_and_left(tmp_path, capsys):
    (tmp_path / "shard.safetensors").write_bytes(b"torn")
    assert find_saved(tmp_path) == {}
    assert "shard.safetensors cannot be read" in capsys.readouterr().out


def test_states_of_another_shape_begin_anew(tmp_path, capsys):
    save(tmp_path / "shard.safetensors", {"mug": state(3, 0.1)})
    other = state(0, 0)._replace(params={"unet.a.lora_A.kernel": np.zeros((5, 2), np.float32)})
    assert read(tmp_path, "mug", example=other) == {}
    assert "is damaged" in capsys.readouterr().out


def test_a_run_with_other_settings_begins_anew(tmp_path):
    save(tmp_path / "shard.safetensors", {"mug": state(3, 0.1)}, identity="b")
    assert read(tmp_path, "mug") == {}


def test_what_may_change_while_a_run_goes_on_does_not_make_another_of_it():
    config = load_config("demo", {"lora.rank": 4})
    longer = load_config("demo", {"lora.rank": 4, "train.steps": 999, "validation.every": 7})
    assert run_identity(longer) == run_identity(config)
    assert run_identity(load_config("demo", {"lora.rank": 4, "seed": 1})) != run_identity(config)
    assert run_identity(load_config("demo", {"lora.rank": 8})) != run_identity(config)
