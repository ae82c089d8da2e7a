"""A flow model trained by two processes: the text encoder is dropped on both, and the run is that of one process."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxbooth.runs.metric_writer import read_metrics
from tests.processes import SHORT, outputs, start_all

LORA_FILE = Path("export") / "pytorch_lora_weights.safetensors"
FLOAT32_STEPS = 2e-5  # three steps of Adam, whose first updates are the signs of sums of another order


@pytest.mark.slow
def test_two_processes_train_a_flow_model_as_one_does(flow_folder, tmp_path):
    flags = ["--lora.rank", 2, "--validation.sampler", "euler", "--data.resolution", 32, "--train.steps", 3]
    flags += ["--data.hold-out", 1]
    command = ["train", *SHORT, "--model", flow_folder("zimage"), *flags]
    (alone,) = outputs(start_all([*command, "--run-dir", tmp_path / "one"], 1, devices=1))
    assert "exported: " in alone, alone
    both = outputs(start_all([*command, "--mesh.fsdp", 2, "--run-dir", tmp_path / "two"], 2, devices=2))
    assert "exported: " in both[0], both
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-5)
    check_held_out(tmp_path)
    expected, found = (load_file(tmp_path / name / LORA_FILE) for name in ("one", "two"))
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=FLOAT32_STEPS, err_msg=name)


def check_held_out(folder: Path) -> None:
    """Compares the losses on the held-out image: of the model before training they are the same bits."""
    one, two = (read_metrics(folder / name / "validation.jsonl") for name in ("one", "two"))
    assert [line["step"] for line in two] == [0, 3]
    of_subject = [name for name in one[0] if name.startswith("validation/subject_loss")]
    assert len(of_subject) == 5
    assert [two[0][name] for name in of_subject] == [one[0][name] for name in of_subject]
    for name in (*of_subject, "validation/class_loss"):
        np.testing.assert_allclose(two[1][name], one[1][name], rtol=1e-4)
