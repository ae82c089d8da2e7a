"""Which checkpoints stay, and when training ends early."""

import pytest

from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.runs.early_stopping import Keeper, Kept, findings, judge, stopped_at


def config(**evaluation) -> Config:
    return Config.model_validate(
        {"validation": {"drift_limit": 0.5}, "evaluation": {"every": 10, "keep_best": "clip_i"} | evaluation}
    )


def after(settings: Config, *seen: tuple[int, dict[str, float], int | None]) -> Kept:
    kept = Kept()
    for step, figures, newest in seen:
        kept = judge(kept, settings, step, {f"eval/{name}": value for name, value in figures.items()}, newest)
    return kept


def test_the_best_step_has_the_highest_similarity():
    kept = after(config(), (10, {"clip_i": 0.7}, 10), (20, {"clip_i": 0.9}, 10), (30, {"clip_i": 0.8}, 30))
    assert (kept.best, kept.value, kept.since) == (20, 0.9, 1)
    assert kept.pinned == {20}


def test_less_leakage_is_better():
    kept = after(config(keep_best="pres"), (10, {"pres": 0.7}, 10), (20, {"pres": 0.6}, 20), (30, {"pres": 0.65}, 20))
    assert (kept.best, kept.value) == (20, 0.6)


def test_the_base_model_is_not_a_checkpoint():
    assert after(config(), (0, {"clip_i": 0.99}, None), (10, {"clip_i": 0.7}, 10)).best == 10


def test_the_checkpoint_before_the_class_drifted_stays():
    seen = [(10, {"drift": 0.1}, 10), (25, {"drift": 0.4}, 20), (40, {"drift": 0.6}, 40), (50, {"drift": 0.3}, 50)]
    kept = after(config(), *seen)
    assert (kept.calm, kept.passed) == (20, 40)
    assert kept.pinned == {20}


def test_patience_counts_evaluations_and_not_validations():
    seen = [(10, {"clip_i": 0.9}, 10), (15, {}, 10), (20, {"clip_i": 0.8}, 20), (25, {}, 20)]
    assert after(config(patience=2), *seen).stopped is None
    assert after(config(patience=2), *seen, (30, {"clip_i": 0.9}, 30)).stopped == 30


def test_another_metric_and_another_limit_are_judged_anew():
    kept = after(config(), (10, {"clip_i": 0.9, "drift": 0.6}, 10))
    assert (kept.best, kept.passed) == (10, 10)
    other = Config.model_validate(
        {"validation": {"drift_limit": 0.7}, "evaluation": {"every": 10, "keep_best": "clip_t"}}
    )
    kept = judge(kept, other, 20, {"eval/clip_t": 0.2, "eval/drift": 0.65}, 20)
    assert (kept.best, kept.value, kept.calm, kept.passed) == (20, 0.2, 20, None)


def test_what_was_found_is_found_again_by_a_run_that_goes_on(tmp_path):
    path, settings = tmp_path / "kept.json", config(patience=1)
    keeper = Keeper(path, settings, 0)
    keeper.see(10, {"eval/clip_i": 0.9, "eval/drift": 0.1}, 10)
    assert Keeper(path, settings, 10).kept == Kept(best=10, value=0.9, calm=10, metric="clip_i", limit=0.5)
    keeper.see(20, {"eval/clip_i": 0.8, "eval/drift": 0.1}, 20)
    assert stopped_at(path) == 20
    assert Keeper(path, settings, 20).kept.stopped is None  # told to train on
    assert Keeper(path, settings, 0).kept == Kept()  # begun anew


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (Kept(), ["the class did not drift past 0.5"]),
        (
            Kept(best=20, value=0.81234, calm=10, passed=30),
            [
                "best clip_i: 0.8123 at step 20, which is kept (--step 20)",
                "the class drifted past 0.5 by step 30; the last checkpoint before is "
                "of step 10, which is kept (--step 10)",
            ],
        ),
        (Kept(passed=5), ["the class drifted past 0.5 by step 5; the last checkpoint before is none"]),
    ],
)
def test_the_end_names_them(kept: Kept, expected: list[str]):
    assert findings(kept, config()) == expected


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"best": "7"}', "'best' = '7' is not valid"),
        ('{"stopped": -1}', "'stopped' = -1 is not valid"),
        ('{"since": 1.5}', "'since' = 1.5 is not valid"),
        ('{"value": true}', "'value' = True is not valid"),
        ('{"best": {"a": 1}}', "'best' = {'a': 1} is not valid"),
        ('{"newer": 3}', "'newer' = 3 is not valid"),
        ('{"metric": 3}', "'metric' = 3 is not valid"),
        ("[7]", "does not hold a JSON object"),
        ("", "is not valid JSON"),
    ],
)
def test_an_edited_file_is_refused_by_its_key_and_with_what_to_do(content, sentence, tmp_path):
    path = tmp_path / "kept.json"
    path.write_text(content)
    for read in (stopped_at, lambda path: Keeper(path, config(), 10)):
        with pytest.raises(UserError) as refused:
            read(path)
        assert sentence in str(refused.value)
        assert str(refused.value).startswith(f"{path}")
        assert str(refused.value).endswith("; put it back, or remove it to judge the coming validations alone.")
