"""Heat maps of made-up jobs: the right number in the right cell, seeds pooled, a panel for what else was crossed."""

import math

import numpy as np
import pandas as pd
import pytest

from workbench.batching.heat_map import draw, heat_map_of, measures_shown
from workbench.batching.jobs import Job


def jobs_of(axes):
    """Jobs of all combinations, and their table: the value is 100 row + 10 column + seed / 10."""
    jobs, rows = [], []
    for number, (hook_point, label, k, seed) in enumerate(axes):
        job = Job(f"{number:04d}", "p", {}, seed, axes={"hook_point": hook_point, "label": label, "k": k, "seed": seed})
        value = 100 * int(hook_point[1:]) + 10 * int(label[1:]) + seed / 10
        jobs.append(job)
        for measure, lo in (("score", value - 1), ("plain", None)):
            hi = None if lo is None else value + 1
            rows.append({"job": job.identity, **job.axes, "measure": measure, "value": value, "lo": lo, "hi": hi})
    return jobs, pd.DataFrame(rows)


def test_cells_hold_their_jobs_and_seeds_share_one():
    axes = [(f"h{h}", f"l{label}", k, seed) for h in (0, 1) for label in (0, 1, 2) for k in (1, 0.5) for seed in (0, 1)]
    jobs, table = jobs_of([each for each in axes if each[:3] != ("h1", "l2", 0.5)])
    shown = heat_map_of(table, jobs, "score", ["hook_point", "label", "k", "seed"])
    assert (shown.rows, shown.columns) == ("hook_point", "label")
    assert [others for others, _ in shown.panels] == [{"k": "1"}, {"k": "0.5"}]
    cells = shown.panels[0][1]
    assert cells.loc[("h1", "l2")].tolist() == pytest.approx([120.05, 119.0, 121.1])
    assert len(shown.panels[1][1]) == 5

    figure = draw(shown, rows=["h0", "h1"], columns=["l0", "l1", "l2"])
    left, right, *_ = figure.axes
    np.testing.assert_allclose(left.images[0].get_array(), [[0.05, 10.05, 20.05], [100.05, 110.05, 120.05]])
    assert math.isnan(np.ma.filled(right.images[0].get_array(), np.nan)[1, 2])
    assert [text.get_text() for text in right.texts][-1] == "–"
    assert left.get_title() == "k 1"
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["h0", "h1"]


@pytest.mark.parametrize(("axes", "rows", "columns"), [(["k", "seed"], "k", ""), (["seed"], "seed", ""), ([], "", "")])
def test_without_hook_points_and_labels_the_first_axes_take_their_place(axes, rows, columns):
    jobs, table = jobs_of([("h0", "l0", k, 0) for k in (1, 2)][: 2 if "k" in axes else 1])
    shown = heat_map_of(table, jobs, "score", axes)
    assert (shown.rows, shown.columns) == (rows, columns)
    values = {"k": ["1", "2"], "seed": ["0"], "": [""]}
    figure = draw(shown, rows=values[rows], columns=values[columns])
    assert figure.axes[0].images[0].get_array().shape == (len(values[rows]), 1)


def test_measures_with_intervals_are_shown_first():
    _, table = jobs_of([("h0", "l0", 1, 0), ("h0", "l1", 1, 0)])
    assert measures_shown(table) == ["score"]
    assert measures_shown(table[table["measure"] == "plain"]) == ["plain"]
