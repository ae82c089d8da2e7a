"""scripts/prior_study.py: its order of runs, and the intervals and tables that it makes of figures."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
# What a setting adds to the base model's CLIP-I of 0.2 and PRES of 0.3, before seed and subject add theirs.
EFFECTS = {"none": (0.4, 0.3), "class-images 1": (0.3, 0.0)}


@pytest.fixture(scope="module")
def study():
    """The modules of the study by name."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield {name: importlib.import_module(f"study.{name}") for name in ("plan", "results", "page")}
    finally:
        sys.path.remove(str(SCRIPTS))


def made_up_records(plan, seeds: int) -> dict:
    """Records of the UNet's full fine-tuning, in which a seed and a subject change every setting alike."""
    records = {}
    for number, subject in enumerate(plan.SUBJECTS):
        task = plan.Task("demo", subject)
        facts = {"name": plan.base_name(task), "model": "demo", "subject": subject, "setting": plan.BASE}
        metrics = {"clip_i": 0.2 + number / 10, "clip_t": 0.3, "pres": 0.3, "div": 0.2}
        records[facts["name"]] = facts | {"metrics": metrics}
        for setting in plan.SETTINGS:
            clip_i, pres = EFFECTS.get(setting, (0.2, 0.1))
            for seed in range(seeds):
                run = plan.Run(task, "full", setting, seed)
                shift = number / 10 + seed / 100
                metrics = {"clip_i": 0.2 + clip_i + shift, "clip_t": 0.3, "pres": 0.3 + pres, "div": 0.2, "drift": 1.0}
                facts = {"name": run.name, "model": "demo", "subject": subject, "trained": "full", "setting": setting}
                costs = {"seed": seed, "cpu_seconds": 10.0 + seed, "class_images": 48}
                records[run.name] = facts | costs | {"metrics": metrics}
    return records


def test_every_setting_has_its_first_seed_before_any_has_its_second(study):
    plan = study["plan"]
    runs = plan.runs_of(0, 1, seeds=2)
    assert len(runs) == len({run.name for run in runs}) == 2 * 11 * 6 * 2
    assert [run.seed for run in runs] == [0] * 132 + [1] * 132
    first = {run.task.subject: run.setting for run in reversed(runs)}
    assert first == {"fluent-cat": "none", "dog": "class-images 2", "backpack": "weight-anchor 0.0001"}


def test_workers_share_all_runs(study):
    plan = study["plan"]
    shares = [plan.runs_of(worker, 4, seeds=3) for worker in range(4)]
    assert sorted(run for share in shares for run in share) == sorted(plan.runs_of(0, 1, seeds=3))
    assert [len(share) for share in shares] == [99] * 4


def test_each_setting_is_a_run_that_is_accepted(study, tmp_path):
    plan = study["plan"]
    for trained in plan.TRAINED:
        configs = {
            setting: plan.run_config(plan.Run(plan.Task("demo-flow", "dog"), trained, setting, 2), tmp_path)
            for setting in plan.SETTINGS
        }
        assert configs["none"].prior.weights == {}
        assert configs["class-images 2"].prior.weights == {"class-images": 2.0}
        assert configs["frozen target"].prior.target == "frozen"
        assert not configs["output-preservation"].data.class_dir
        assert all(config.seed == 2 and config.data.instance_prompt == "a sks dog" for config in configs.values())


def test_a_difference_is_that_of_the_same_subject_and_seed(study):
    plan, results = study["plan"], study["results"]
    group = results.group_of(made_up_records(plan, 3), "demo", "full")
    difference = results.difference(group, "none", "clip_i")
    np.testing.assert_allclose([difference.mean, difference.low, difference.high], 0.1)  # nothing that both share
    change = results.change(group, "none", "clip_i")
    np.testing.assert_allclose(change.mean, 0.41)  # 0.4, and the seeds' 0, 0.01 and 0.02
    assert 0.4 <= change.low < change.mean < change.high <= 0.42
    assert change.count == 9


def test_a_later_seed_that_is_not_complete_is_left_out(study):
    plan, results = study["plan"], study["results"]
    records = made_up_records(plan, 3)
    del records[plan.Run(plan.Task("demo", "dog"), "full", "none", 1).name]
    group = results.group_of(records, "demo", "full")
    assert group.num_seeds == 2
    np.testing.assert_allclose(group.runs["none"]["clip_i"], [[0.6, 0.62], [0.7, 0.72], [0.8, 0.82]])


def test_a_setting_that_lacks_a_subject_is_left_out(study):
    plan, results = study["plan"], study["results"]
    records = made_up_records(plan, 2)
    del records[plan.Run(plan.Task("demo", "dog"), "full", "none", 0).name]
    group = results.group_of(records, "demo", "full")
    assert list(group.runs) == [setting for setting in plan.SETTINGS if setting != "none"]
    assert group.num_seeds == 2
    whole = results.group_of(made_up_records(plan, 1), "demo", "full")
    both = results.together([group, whole])
    assert "none" not in both.runs
    assert both.runs["class-images 1"]["clip_i"].shape == (3, 3)


def test_records_of_another_plan_are_not_mixed_with_these(study, tmp_path):
    plan, results = study["plan"], study["results"]
    published = tmp_path / "prior-study.json"
    published.write_text(json.dumps({"plan": plan.plan(), "records": [{"name": "a"}]}))
    (tmp_path / "b.json").write_text(json.dumps({"name": "b", "plan": plan.plan()}))
    (tmp_path / "c.json").write_text(json.dumps({"name": "c", "plan": plan.plan() | {"steps": 7}}))
    folder = tmp_path / "results"
    folder.mkdir()
    for name in "bc":
        (tmp_path / f"{name}.json").rename(folder / f"{name}.json")
    assert set(results.read_records(published, folder)) == {"a", "b"}
    published.write_text(json.dumps({"plan": {}, "records": [{"name": "a"}]}))
    assert set(results.read_records(published, folder)) == {"b"}


def test_the_tables_say_which_differences_an_interval_tells_from_zero(study):
    plan, results, page = study["plan"], study["results"], study["page"]
    group = results.group_of(made_up_records(plan, 3), "demo", "full")
    row = next(line for line in page.main_table(group).splitlines() if line.startswith("| none |"))
    assert row.startswith("| none | 0.710 (+0.410 [")
    assert row.endswith("| 1.000 (+1.000 [+1.000, +1.000]) | 10 | 48 |")
    row = next(line for line in page.paired_table(group).splitlines() if line.startswith("| none |"))
    assert row.startswith("| none | **+0.100 [+0.100, +0.100]** | +0.000 [+0.000, +0.000] | **+0.300")
