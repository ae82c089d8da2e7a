"""The report's arithmetic: thinning and smoothing of curves, sizes of images, sheets taken apart."""

import numpy as np
import pytest
from PIL import Image

from jaxbooth.data.image_grid import image_grid, split_grid
from jaxbooth.report.charts import curve_spec, import_vl_convert, interval_spec
from jaxbooth.report.curves import Curve, keep_extremes, read_curves, smoothed, table_steps, value_at
from jaxbooth.report.images import EmbeddedSize, embed, fitting_size
from jaxbooth.report.settings import format_run_time
from tests.made_up_runs import photo


def curve(values: np.ndarray) -> Curve:
    return Curve(np.arange(1, len(values) + 1), np.asarray(values, np.float64))


def test_a_spike_survives_thinning():
    values = np.zeros(10_000)
    values[[1234, 8765]] = 7, -3
    thin = keep_extremes(curve(values))
    assert len(thin.steps) <= 602
    assert (thin.steps[0], thin.steps[-1]) == (1, 10_000)
    assert thin.values[thin.steps == 1235] == 7
    assert thin.values[thin.steps == 8766] == -3


def test_a_short_curve_is_not_thinned():
    whole = curve(np.arange(600.0))
    assert keep_extremes(whole) is whole


@pytest.mark.parametrize("length", [1, 2, 17, 400, 12_345])
def test_smoothing_leaves_a_constant_and_both_ends_in_place(length):
    smooth = smoothed(curve(np.full(length, 0.25)))
    np.testing.assert_allclose(smooth.values, 0.25, rtol=1e-12)
    assert (smooth.steps[0], smooth.steps[-1]) == (1, length)
    assert len(smooth.steps) <= 400


def test_smoothing_does_not_lag_behind_a_line():
    smooth = smoothed(curve(np.arange(1, 1001.0)))
    inside = slice(30, -30)
    np.testing.assert_allclose(smooth.values[inside], smooth.steps[inside], atol=2.0)


def test_smoothing_removes_noise(rng):
    smooth = smoothed(curve(1 + rng.normal(0, 0.5, 2000)))
    assert np.abs(smooth.values - 1).max() < 0.25


def test_lines_that_are_no_metrics_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 2, "loss": 0.5, "note": "x"}', "7", '{"loss": 1}', '{"step": 1, "loss": NaN}', '{"step": 3, "lo']
    path.write_text("\n".join(lines))
    curves = read_curves(path)
    assert list(curves) == ["loss"]
    assert (curves["loss"].steps.tolist(), curves["loss"].values.tolist()) == ([2], [0.5])


def test_numbers_that_no_curve_can_hold_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    huge = "9" * 400
    lines = [
        f'{{"step": 1, "loss": {huge}, "note": "a\u2028b", "rate": 2}}',
        f'{{"step": {huge}, "loss": 1}}',
        "[" * 99_999,
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    curves = read_curves(path)
    assert {name: each.values.tolist() for name, each in curves.items()} == {"rate": [2.0]}


def test_a_step_that_was_done_again_counts_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1}\n{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n')
    assert read_curves(path)["loss"].values.tolist() == [3, 2]


def test_a_table_has_few_rows_with_both_ends():
    steps = table_steps([curve(np.zeros(500)), curve(np.zeros(1000))])
    assert len(steps) == 20
    assert (steps[0], steps[-1]) == (1, 1000)


def test_a_curve_has_no_value_beyond_its_end():
    assert value_at(curve(np.array([5.0, 6.0])), 2) == 6.0
    assert value_at(curve(np.array([5.0, 6.0])), 3) is None


@pytest.mark.parametrize(("side", "columns", "rows"), [(64, 4, 3), (100, 1, 2), (512, 2, 1)])
def test_a_sheet_is_taken_apart_pixel_for_pixel(side, columns, rows):
    images = [photo(number, side) for number in range(columns * rows)]
    found = split_grid(image_grid(images, ["label"] * len(images), columns), rows, side)
    assert found is not None
    assert [len(row) for row in found] == [columns] * rows
    for image, pixels in zip((image for row in found for image in row), images, strict=True):
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_a_sheet_of_another_layout_stays_whole():
    grid = image_grid([photo(0, 64)] * 4, [""] * 4, 2)
    assert split_grid(grid, 3, 64) is None
    assert split_grid(grid, 2, 96) is None


def test_pixel_art_keeps_every_pixel():
    embedded = embed(Image.fromarray(photo(1, 64)), EmbeddedSize(32, 10))
    assert (embedded.width, embedded.height, embedded.pixelated) == (64, 64, True)


def test_a_large_image_is_shrunk_to_its_longest_side():
    embedded = embed(Image.fromarray(photo(1, 512)).resize((512, 256)), EmbeddedSize(256, 80))
    assert (embedded.width, embedded.height, embedded.pixelated) == (256, 128, False)


def test_more_images_are_embedded_smaller():
    images = [Image.fromarray(photo(number, 512)) for number in range(2)]
    sizes = [fitting_size(images, count, 2_000_000).longest for count in (10, 100, 100_000)]
    assert sizes[0] == 512
    assert 128 < sizes[1] < 512
    assert sizes[2] == 128


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_charts_are_valid_and_keep_a_runs_colour(scale):
    spec = curve_spec(["a", "b"], scale, zero=False)
    rows = [{"run": "b", "step": step, "value": 10.0**-step} for step in (1, 2, 3)]
    drawn = import_vl_convert().vegalite_to_svg(spec | {"datasets": {"raw": rows, "smooth": rows, "points": []}})
    assert "var(--run-1)" in drawn
    assert "var(--run-0)" not in drawn


def test_an_interval_that_is_unknown_is_a_dot():
    row = {"model": "base", "colour": "var(--base)", "mean": 0.5, "low": None, "high": None}
    assert "var(--base)" in import_vl_convert().vegalite_to_svg(interval_spec([row]))


def test_times_are_written_in_their_unit():
    found = [format_run_time(seconds) for seconds in (0.0321, 1.5, 59, 90, 7260)]
    assert found == ["32.1 ms", "1.5 s", "59 s", "1.5 min", "2 h 1 min"]
