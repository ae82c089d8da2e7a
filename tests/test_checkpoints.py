"""Checkpoints: damage of every kind is noticed, the one before is used, and any mesh reads what any mesh wrote."""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from jaxbooth.config.run_config import Config
from jaxbooth.errors import RunFailure, UserError
from jaxbooth.runs.checkpoint import Checkpoints
from jaxbooth.sharding import make_mesh, param_shardings
from jaxbooth.training.state import TrainState, abstract_state, field_sums, initial_state

TX = optax.adam(1e-3)
SHAPES = {"unet.down.kernel": (64, 96), "unet.up.kernel": (3, 3, 32, 64), "unet.bias": (64,), "text_encoder.k": (8, 8)}

# What Orbax has begun to read beside a damaged array it never awaits.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::RuntimeWarning")


def values() -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, shape in SHAPES.items():
        component, key = name.split(".", 1)
        found.setdefault(component, {})[key] = rng.normal(size=shape).astype(np.float32)
    return found


def state_at(step: int, mesh: Mesh) -> TrainState:
    """A state with an average; every array of it depends on `step`, but for the optimizer's own."""
    place = param_shardings(mesh)
    placed = {
        name: {key: jax.device_put(value * step, place(f"{name}.{key}", value.shape)) for key, value in params.items()}
        for name, params in values().items()
    }
    return initial_state(placed, TX, True, mesh)._replace(step=jnp.int32(step))


def expected(mesh: Mesh) -> TrainState:
    shapes = {
        name: {key: jax.ShapeDtypeStruct(v.shape, v.dtype) for key, v in p.items()} for name, p in values().items()
    }
    return abstract_state(shapes, TX, True, mesh)


def equal(found: TrainState, step: int, mesh: Mesh) -> None:
    """Asserts that `found` is what was saved at a step, bit for bit."""
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(state_at(step, mesh)), strict=True)
    assert all(np.array_equal(a, b) for a, b in leaves)


@pytest.fixture(autouse=True, scope="module")
def older_objects():
    """Leaves what was there before out of each collection."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def collected():
    """Drops those readers before another test meets them."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def saved(tmp_path_factory, mesh) -> Path:
    """Steps 3 and 6."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, 2)
    for step in (3, 6):
        checkpoints.save(state_at(step, mesh), step, Config())
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def read(folder: Path, mesh: Mesh, keep: int | None = None) -> tuple[TrainState, int]:
    checkpoints = Checkpoints(folder, keep)
    try:
        return checkpoints.restore(expected(mesh))
    finally:
        checkpoints.close()


def flip(content: bytes) -> bytes:
    """Flips one bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(flip(path.read_bytes())),
    "garbage": lambda path: path.write_bytes(np.random.default_rng(1).bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damaged_file_leads_to_other_weights(saved, tmp_path, mesh, damage):
    noticed = []
    for number, path in enumerate(sorted(path for path in (saved / "6").rglob("*") if path.is_file())):
        folder = Path(shutil.copytree(saved, tmp_path / str(number)))
        DAMAGES[damage](folder / path.relative_to(saved))
        state, step = read(folder, mesh)
        equal(state, step, mesh)  # files that hold no weights may be damaged without effect
        noticed += [path.relative_to(saved / "6").parts[0]] if step == 3 else []
    assert set(noticed) == {"state", "sums"}
    assert noticed.count("state") >= 4


def test_of_a_flipped_bit_in_the_largest_file_the_reader_says_which_field_it_changed(folder, mesh, capsys):
    largest = max(
        (path for path in folder.glob("6/state/**/*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    largest.write_bytes(flip(largest.read_bytes()))
    _, step = read(folder, mesh)
    told = capsys.readouterr().out
    assert step == 3
    assert told.count("warning:") == 1
    assert f"{folder / '6'} is damaged (" in told
    assert "the checkpoint of step 3 is used" in told


def test_a_reader_moves_nothing_and_a_writer_moves_the_damaged_step_aside(folder, mesh):
    shutil.rmtree(folder / "6" / "state")
    before = sorted(folder.rglob("*"))
    assert read(folder, mesh)[1] == 3
    assert sorted(folder.rglob("*")) == before
    assert read(folder, mesh, keep=2)[1] == 3
    assert {path.name for path in folder.iterdir()} == {"3", "damaged-6"}
    assert sorted(path.name for path in (folder / "damaged-6").iterdir()) == sorted(
        path.name for path in before if path.parent == folder / "6"
    )


def test_a_step_that_was_damaged_is_saved_again_and_damaged_twice(folder, mesh):
    for _ in range(2):
        shutil.rmtree(folder / "6" / "sums")
        checkpoints = Checkpoints(folder, 2)
        assert checkpoints.restore(expected(mesh))[1] == 3
        assert checkpoints.latest() == 3
        checkpoints.save(state_at(6, mesh), 6, Config())
        checkpoints.close()
        equal(read(folder, mesh)[0], 6, mesh)
    assert {path.name for path in folder.iterdir()} == {"3", "6", "damaged-6", "damaged-6-2"}


def test_an_empty_folder_of_a_step_is_damage(folder, mesh):
    (folder / "9").mkdir()
    state, step = read(folder, mesh)
    assert step == 6
    equal(state, 6, mesh)


def test_where_no_checkpoint_is_sound_nothing_is_moved_and_the_folder_is_named(folder, mesh):
    for step in ("3", "6"):
        shutil.rmtree(folder / step / "state")
    with pytest.raises(
        UserError, match=r"checkpoints holds no checkpoint that can be read \(6: .*3: .*move that folder"
    ):
        read(folder, mesh, keep=2)
    assert {path.name for path in folder.iterdir()} == {"3", "6"}


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_what_one_mesh_saved_another_reads(tmp_path, mesh, sizes):
    wide = make_mesh(*sizes)
    first = Checkpoints(tmp_path, 2)
    first.save(state_at(3, wide), 3, Config())
    first.close()
    there, _ = read(tmp_path, make_mesh(2, 4, 1))
    equal(there, 3, mesh)
    assert {value.sharding.mesh.shape["fsdp"] for value in there.params.values()} == {4}
    second = Checkpoints(tmp_path, 2)
    second.save(there, 4, Config())
    second.close()
    equal(read(tmp_path, mesh)[0], 3, mesh)


def test_sums_see_a_flipped_bit_and_arrays_that_changed_places():
    fields = {"params": {"a": jnp.arange(6.0), "b": jnp.ones(6)}, "step": jnp.int32(1)}
    one = jnp.float32(1).view(jnp.uint32) ^ 1
    flipped = fields | {"params": {"a": jnp.arange(6.0), "b": jnp.ones(6).at[3].set(one.view(jnp.float32))}}
    swapped = fields | {"params": {"a": jnp.ones(6), "b": jnp.arange(6.0)}}
    sums = [int(field_sums(case)["params"]) for case in (fields, flipped, swapped)]
    assert len(set(sums)) == 3
    assert {int(field_sums(case)["step"]) for case in (fields, flipped, swapped)} == {1}


@pytest.mark.parametrize(
    "name",
    ["a[b]", "[", "]", "*", "?", "two words ", "#%41", "\"q'uote`$x", "emoji 😀 é", "new\nline", "x" * 200, "~", "-x:"],
)
def test_whatever_is_in_the_name_of_a_folder_its_checkpoints_are_read_back(name, tmp_path, mesh):
    folder = tmp_path / name / "checkpoints"
    writing = Checkpoints(folder, 1)
    for step in (3, 6):
        writing.save(state_at(step, mesh), step, Config())
    writing.close()
    reading = Checkpoints(folder)
    found, step = reading.restore(expected(mesh))
    reading.close()
    assert step == 6
    equal(found, 6, mesh)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_folder_is_no_pattern_that_its_neighbours_match(tmp_path, mesh):
    writing = {name: Checkpoints(tmp_path / name / "checkpoints", 1) for name in ("ab", "*")}
    for number, checkpoints in enumerate(writing.values(), start=1):
        checkpoints.save(state_at(number, mesh)._replace(step=jnp.int32(6)), 6, Config())
    for number, (name, checkpoints) in enumerate(writing.items(), start=1):
        checkpoints.close()
        reading = Checkpoints(tmp_path / name / "checkpoints")
        equal(reading.restore(expected(mesh))[0]._replace(step=jnp.int32(number)), number, mesh)
        reading.close()


def test_a_checkpoint_lies_behind_a_symlink_and_parents_where_the_path_leads(tmp_path, mesh):
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "deep")
    writing = Checkpoints(tmp_path / "link" / ".." / "run", 1)
    writing.save(state_at(3, mesh), 3, Config())
    writing.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    reading = Checkpoints(tmp_path / "disk" / "run")
    equal(reading.restore(expected(mesh))[0], 3, mesh)
    reading.close()


@pytest.mark.parametrize("name", ["back\\slash", "logs:", "\udcff"])
def test_a_folder_that_the_library_would_misread_is_refused_before_anything_is_made(name, tmp_path):
    with pytest.raises(UserError, match=r"^checkpoints cannot be kept in .*; choose another --run-dir\.$") as refused:
        Checkpoints(tmp_path / name / "checkpoints", 1)
    assert str(refused.value).isascii()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("store", ["gs", "s3", "az", "hf"])
def test_a_local_folder_named_like_an_object_store_is_refused(store):
    with pytest.raises(UserError, match="the name of an object store as its first folder"):
        Checkpoints(Path(f"/{store}/run/checkpoints"))


def test_a_first_checkpoint_that_cannot_be_read_back_ends_the_run_at_once(tmp_path, mesh, monkeypatch):
    forgetful = Checkpoints(tmp_path / "checkpoints", 2)
    monkeypatch.setattr(forgetful._manager, "save", lambda *_, **__: True)  # a file system that keeps nothing
    with pytest.raises(RunFailure, match=r"3 was written and cannot be read back \(.*\); choose a --run-dir"):
        forgetful.save(state_at(3, mesh), 3, Config())
    forgetful.close()
