"""A flow model trained by two processes: the text encoder is dropped on both, and the run is that of one process."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from jaxbooth.runs.metric_writer import read_metrics
from tests.processes import SHORT, outputs, start_all

LORA_FILE = Path("export") / "pytorch_lora_weights.safetensors"
FLOAT32_STEPS = 2e-5  # three steps of Adam, whose first updates are the signs of sums of another order


def test_two_processes_train_a_flow_model_as_one_does(flow_folder, tmp_path):
    flags = ["--lora.rank", 2, "--validation.sampler", "euler", "--data.resolution", 32, "--train.steps", 3]
    command = ["train", *SHORT, "--model", flow_folder("zimage"), *flags]
    (alone,) = outputs(start_all([*command, "--run-dir", tmp_path / "one"], 1, devices=1))
    assert "exported: " in alone, alone
    both = outputs(start_all([*command, "--mesh.fsdp", 2, "--run-dir", tmp_path / "two"], 2, devices=2))
    assert "exported: " in both[0], both
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    np.testing.assert_allclose([line["loss"] for line in two], [line["loss"] for line in one], rtol=1e-5)
    expected, found = (load_file(tmp_path / name / LORA_FILE) for name in ("one", "two"))
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=FLOAT32_STEPS, err_msg=name)
