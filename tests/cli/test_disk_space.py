"""Folders without room or that cannot be written are refused before a run makes anything."""

from tests.cli.arguments import train


def test_a_run_that_has_no_room_is_refused_before_its_folder_is_made(refused, dog, tmp_path):
    run_dir = tmp_path / "run"
    sentence = refused(*train(dog, "--run-dir", run_dir, "--train.max-checkpoints", "1000000000"))
    assert sentence.startswith(f"--run-dir {run_dir} has ")
    assert "1000000001 checkpoint(s) of " in sentence
    assert "1 class images" in sentence
    assert not run_dir.exists()


def test_a_class_folder_without_room_is_named(refused, dog, tmp_path):
    flags = (
        "--run-dir",
        tmp_path / "run",
        "--data.class-dir",
        "/dev/shm/prior",
        "--data.num-class-images",
        "100000",
        "--data.resolution",
        "512",
        "--force",
    )
    sentence = refused(*train(dog, *flags))
    assert sentence.startswith("--data.class-dir /dev/shm/prior has ")
    assert "needs about 78.64 GB there (100000 class images)" in sentence


def test_a_class_folder_that_cannot_be_written_is_refused_before_a_folder_is_made(refused, dog, tmp_path):
    flags = ("--data.class-dir", "/proc/prior", "--run-dir", tmp_path / "run")
    assert refused(*train(dog, *flags)).startswith("--data.class-dir /proc/prior cannot be written (")
    assert not (tmp_path / "run").exists()
