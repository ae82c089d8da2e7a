"""Which checkpoints stay, and when training ends early."""

import pytest

from jaxbooth.config.run_config import Config
from jaxbooth.errors import UserError
from jaxbooth.runs.early_stopping import EarlyStopping, Selection, early_stop_step, summary, update


def config(**evaluation) -> Config:
    return Config.model_validate(
        {"validation": {"drift_limit": 0.5}, "evaluation": {"every": 10, "keep_best": "clip_i"} | evaluation}
    )


def after(settings: Config, *seen: tuple[int, dict[str, float], int | None]) -> Selection:
    selection = Selection()
    for step, metrics, newest in seen:
        named = {f"eval/{name}": value for name, value in metrics.items()}
        selection = update(selection, settings.validation, settings.evaluation, step, named, newest)
    return selection


def test_the_best_step_has_the_highest_similarity():
    selection = after(config(), (10, {"clip_i": 0.7}, 10), (20, {"clip_i": 0.9}, 10), (30, {"clip_i": 0.8}, 30))
    assert (selection.best_step, selection.best_value, selection.evaluations_since_best) == (20, 0.9, 1)
    assert selection.pinned == {20}


def test_less_leakage_is_better():
    selection = after(
        config(keep_best="pres"), (10, {"pres": 0.7}, 10), (20, {"pres": 0.6}, 20), (30, {"pres": 0.65}, 20)
    )
    assert (selection.best_step, selection.best_value) == (20, 0.6)


def test_less_loss_on_held_out_images_is_better_and_needs_no_evaluation():
    watched = Config.model_validate({"data": {"hold_out": 1}, "evaluation": {"keep_best": "validation_loss"}})
    selection = Selection()
    for step, loss in ((0, 0.1), (10, 0.5), (20, 0.3), (30, 0.4)):
        metrics = {"validation/subject_loss": loss, "validation/class_loss": 1 - loss}
        selection = update(selection, watched.validation, watched.evaluation, step, metrics, step)
    assert (selection.best_step, selection.best_value, selection.evaluations_since_best) == (20, 0.3, 1)


def test_the_base_model_is_not_a_checkpoint():
    assert after(config(), (0, {"clip_i": 0.99}, None), (10, {"clip_i": 0.7}, 10)).best_step == 10


def test_the_checkpoint_before_the_class_drifted_stays():
    seen = [(10, {"drift": 0.1}, 10), (25, {"drift": 0.4}, 20), (40, {"drift": 0.6}, 40), (50, {"drift": 0.3}, 50)]
    selection = after(config(), *seen)
    assert (selection.last_below_drift, selection.drift_exceeded_at) == (20, 40)
    assert selection.pinned == {20}


def test_patience_counts_evaluations_and_not_validations():
    seen = [(10, {"clip_i": 0.9}, 10), (15, {}, 10), (20, {"clip_i": 0.8}, 20), (25, {}, 20)]
    assert after(config(patience=2), *seen).stopped_at is None
    assert after(config(patience=2), *seen, (30, {"clip_i": 0.9}, 30)).stopped_at == 30


def test_another_metric_and_another_limit_are_judged_anew():
    selection = after(config(), (10, {"clip_i": 0.9, "drift": 0.6}, 10))
    assert (selection.best_step, selection.drift_exceeded_at) == (10, 10)
    other = Config.model_validate(
        {"validation": {"drift_limit": 0.7}, "evaluation": {"every": 10, "keep_best": "clip_t"}}
    )
    selection = update(selection, other.validation, other.evaluation, 20, {"eval/clip_t": 0.2, "eval/drift": 0.65}, 20)
    assert (selection.best_step, selection.best_value) == (20, 0.2)
    assert (selection.last_below_drift, selection.drift_exceeded_at) == (20, None)


def test_what_was_found_is_found_again_by_a_run_that_goes_on(tmp_path):
    path, settings = tmp_path / "selection.json", config(patience=1)
    early_stopping = EarlyStopping(path, settings.validation, settings.evaluation, 0)
    early_stopping.observe(10, {"eval/clip_i": 0.9, "eval/drift": 0.1}, 10)
    assert EarlyStopping(path, settings.validation, settings.evaluation, 10).selection == Selection(
        best_step=10, best_value=0.9, last_below_drift=10, metric="clip_i", drift_limit=0.5
    )
    early_stopping.observe(20, {"eval/clip_i": 0.8, "eval/drift": 0.1}, 20)
    assert early_stop_step(path) == 20
    assert (
        EarlyStopping(path, settings.validation, settings.evaluation, 20).selection.stopped_at is None
    )  # told to train on
    assert EarlyStopping(path, settings.validation, settings.evaluation, 0).selection == Selection()  # begun anew


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), ["the class did not drift past 0.5"]),
        (
            Selection(best_step=20, best_value=0.81234, last_below_drift=10, drift_exceeded_at=30),
            [
                "best clip_i: 0.8123 at step 20, which is kept (--step 20)",
                "the class drifted past 0.5 by step 30; the last checkpoint before is "
                "of step 10, which is kept (--step 10)",
            ],
        ),
        (Selection(drift_exceeded_at=5), ["the class drifted past 0.5 by step 5; the last checkpoint before is none"]),
    ],
)
def test_the_end_names_them(selection: Selection, expected: list[str]):
    assert summary(selection, config().validation, config().evaluation) == expected


def test_an_early_end_counts_what_was_waited_for():
    selection = Selection(best_step=20, best_value=0.5, evaluations_since_best=3, stopped_at=50)
    for metric, waited in (("clip_i", "3 evaluations"), ("validation_loss", "3 validations")):
        settings = config(keep_best=metric)
        first, *_ = summary(selection, settings.validation, settings.evaluation)
        assert first == f"ended early at step 50: {waited} without a better {metric}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"best_step": "7"}', "'best_step' = '7' is not valid"),
        ('{"stopped_at": -1}', "'stopped_at' = -1 is not valid"),
        ('{"evaluations_since_best": 1.5}', "'evaluations_since_best' = 1.5 is not valid"),
        ('{"best_value": true}', "'best_value' = True is not valid"),
        ('{"best_step": {"a": 1}}', "'best_step' = {'a': 1} is not valid"),
        ('{"newer": 3}', "'newer' = 3 is not valid"),
        ('{"metric": 3}', "'metric' = 3 is not valid"),
        ("[7]", "does not hold a JSON object"),
        ("", "is not valid JSON"),
    ],
)
def test_an_edited_file_is_refused_by_its_key_and_with_what_to_do(content, sentence, tmp_path):
    path = tmp_path / "selection.json"
    path.write_text(content)
    for read in (early_stop_step, lambda path: EarlyStopping(path, config().validation, config().evaluation, 10)):
        with pytest.raises(UserError) as refused:
            read(path)
        assert sentence in str(refused.value)
        assert str(refused.value).startswith(f"{path}")
        assert str(refused.value).endswith("; put it back, or remove it to judge the coming validations alone.")
