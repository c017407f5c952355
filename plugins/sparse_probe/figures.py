"""The figures: score against k, hook point by label, and the best unit of each label by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.probes.metrics import Metric, lower_is_better
from workbench.report.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_BINS = 50
METRIC_NAMES = {
    "auc": "AUC",
    "average_precision": "average precision",
    "f1": "F1",
    "mcc": "MCC",
    "balanced_accuracy": "balanced accuracy",
    "log_loss": "log loss (bits)",
}


def _grid(n: int, height_in: float, **subplots: Any) -> tuple[Figure, list[Axes]]:
    """Make one axes per label, at most three in a row; unused ones are hidden."""
    n_columns = min(3, n)
    n_rows = math.ceil(n / n_columns)
    size = {"width_in": 3.4 * n_columns + 0.4, "height_in": height_in * n_rows + 0.9}
    figure, axes = new_figure(n_rows, n_columns, **size, **subplots)
    for unused in axes[n:]:
        unused.set_visible(False)
    return figure, axes[:n]


def curves(scores: pd.DataFrame, best: pd.DataFrame, labels: Sequence[str], metric: Metric) -> Figure:
    """Draw test score against k for each label: hook points, floor, shuffled labels, random units, dense probe.

    With more hook points than there are colours the ones that were chosen for some label and k are coloured.
    """
    figure, axes = _grid(len(labels), 2.6, sharey=True)
    ours = scores[(scores["metric"] == metric) & (scores["split"] == "test")]
    hook_points = [name for name in ours["hook_point"].unique() if name]
    shown = (
        hook_points if len(hook_points) <= len(COLOURS) - 1 else list(best["hook_point"].unique())[: len(COLOURS) - 1]
    )
    handles: dict[str, object] = {}
    for axis, label in zip(axes, labels, strict=True):
        of_label = ours[ours["label"] == label]
        chosen = best[best["label"] == label].iloc[-1]["hook_point"]
        for place, hook_point in enumerate(hook_points):
            line = of_label[(of_label["hook_point"] == hook_point) & (of_label["probe"] == "k-sparse")].sort_values("k")
            colour = COLOURS[shown.index(hook_point)] if hook_point in shown else "#c8c8c8"
            errors = np.stack([line["value"] - line["lo"], line["hi"] - line["value"]]).clip(0)
            aside = 2 ** (0.05 * (place - (len(hook_points) - 1) / 2))  # so that intervals do not hide each other
            bars = axis.errorbar(
                line["k"] * aside, line["value"], yerr=errors, color=colour, marker="o", markersize=3, linewidth=1.2,
                elinewidth=0.7, capsize=1.5, zorder=3,
            )  # fmt: skip
            handles.setdefault(hook_point if hook_point in shown else "other hook points", bars)
        _baselines(axis, of_label, chosen, handles)
        axis.set_xscale("log", base=2)
        ks = sorted(of_label[of_label["probe"] == "k-sparse"]["k"].unique())
        axis.set_xticks(ks, [str(k) for k in ks])
        axis.minorticks_off()
        axis.set_title(_short(label), fontsize=9)
        axis.set_xlabel("units k")
        axis.set_ylabel(METRIC_NAMES[metric])
    figure.legend(
        list(handles.values()), list(handles), loc="outside lower center", ncols=min(4, len(handles)), fontsize=8,
        frameon=False,
    )  # type: ignore[call-overload]  # fmt: skip
    return figure


def _baselines(axis: Axes, of_label: pd.DataFrame, hook_point: str, handles: dict[str, object]) -> None:
    """Draw what a probe of one hook point is held against."""
    at = of_label[of_label["hook_point"] == hook_point]
    null = at[at["probe"] == "shuffled labels"].sort_values("k")
    if len(null):
        band = axis.fill_between(null["k"], null["lo"], null["hi"], color="#d9d9d9", linewidth=0, zorder=1)
        handles.setdefault("shuffled labels, 95 % of draws", band)
    chance = at[at["probe"] == "random units"].sort_values("k")
    if len(chance):
        (line,) = axis.plot(chance["k"], chance["value"], color="#555555", linestyle=":", linewidth=1.2, zorder=2)
        handles.setdefault("k units at random", line)
    floor = axis.axhline(float(at["floor"].iloc[0]), color="#555555", linestyle="--", linewidth=0.9, zorder=1)
    handles.setdefault("floor", floor)
    dense = at[at["probe"] == "dense"]
    if len(dense):
        top = axis.axhline(float(dense["value"].iloc[0]), color="#222222", linestyle="-.", linewidth=0.9, zorder=1)
        handles.setdefault("all units (hook point chosen)", top)
    token = of_label[of_label["probe"] == "token identity"]
    if len(token):
        line = axis.axhline(float(token["value"].iloc[0]), color="#b0703c", linestyle=(0, (1, 3)), linewidth=1.4)
        handles.setdefault("token identity", line)


def heat_map(scores: pd.DataFrame, labels: Sequence[str], ks: Sequence[int], metric: Metric) -> Figure:
    """Draw test scores of every hook point and label, for the smallest and the largest k."""
    shown = list(dict.fromkeys([ks[0], ks[-1]]))
    ours = scores[(scores["metric"] == metric) & (scores["split"] == "test") & (scores["probe"] == "k-sparse")]
    hook_points = list(ours["hook_point"].unique())
    figure, axes = new_figure(
        1, len(shown), width_in=max(4.5, 1.6 + 0.75 * len(labels)) * len(shown), height_in=1.7 + 0.34 * len(hook_points)
    )
    low, high = float(min(ours["floor"].min(), ours["value"].min())), float(ours["value"].max())
    if metric in ("auc", "balanced_accuracy", "mcc"):
        low, high = (0.5 if metric != "mcc" else 0.0), 1.0
    for axis, k in zip(axes, shown, strict=True):
        at = ours[ours["k"] == k].pivot_table(index="hook_point", columns="label", values="value")
        values = at.reindex(index=hook_points, columns=list(labels)).to_numpy()
        palette = "Blues_r" if lower_is_better(metric) else "Blues"
        image = axis.imshow(values, cmap=palette, vmin=low, vmax=high, aspect="auto")
        for row in range(len(hook_points)):
            for column in range(len(labels)):
                depth = (values[row, column] - low) / ((high - low) or 1)
                dark = (1 - depth if lower_is_better(metric) else depth) > 0.6
                axis.text(
                    column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if dark else "#222222",
                )  # fmt: skip
        axis.set_xticks(range(len(labels)), [_short(label) for label in labels], rotation=35, ha="right")
        axis.set_yticks(range(len(hook_points)), hook_points if axis is axes[0] else [""] * len(hook_points))
        axis.set_title(f"k = {k}", fontsize=9)
        axis.grid(visible=False)
        figure.colorbar(image, ax=axis, label=METRIC_NAMES[metric], fraction=0.05)
    return figure


def histograms(columns: Sequence[tuple[str, str, int, np.ndarray, np.ndarray]]) -> Figure:
    """Draw the distribution of one unit by class, for each label.

    Parameters
    ----------
    columns : sequence of (label, hook point, unit, values [rows], y [rows])
        Test rows.
    """
    figure, axes = _grid(len(columns), 2.2)
    for axis, (label, hook_point, unit, values, y) in zip(axes, columns, strict=True):
        edges = np.linspace(float(values.min()), float(values.max()) or 1.0, N_BINS + 1)
        for answer, colour, word in ((False, COLOURS[6], "no"), (True, COLOURS[1], "yes")):
            members = values[y == answer]
            weights = np.full(len(members), 1 / max(1, len(members)))
            axis.hist(members, edges.tolist(), weights=weights, color=colour, alpha=0.55, label=word, linewidth=0)
        axis.set_yscale("log")
        axis.set_title(f"{_short(label)}: {hook_point} unit {unit}", fontsize=8)
        axis.set_xlabel("activation")
        axis.set_ylabel("share of class")
    axes[0].legend(title="label", fontsize=8, title_fontsize=8, frameon=False)
    return figure


def _short(label: str, most: int = 28) -> str:
    return label if len(label) <= most else label[: most - 1] + "…"
