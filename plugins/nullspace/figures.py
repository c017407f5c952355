"""Figures: the rounds, what probes still read, what other labels lost, what the running subject lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.report import new_figure
from workbench.report.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pair = tuple[str, str]  # hook point and label
GREY = "#a8a8a8"
AT_MOST = 6  # pairs in a figure
NAMES = {"none": "nothing erased", "inlp": "INLP", "leace": "LEACE", "mean-projection": "mean projection"}
NAMES |= {f"random {key}": f"random, rank of {name}" for key, name in NAMES.items()}
PROBE_NAMES = {"logistic": "logistic", "lda": "discriminant", "network": "network", "rbf": "RBF kernel"}


def colour_of(method: str, methods: Sequence[str]) -> str:
    """Return a colour for each method; random projections have a paler grey, no erasure the dark one."""
    if method == "none":
        return "#3c3c3c"
    return GREY if method.startswith("random") else COLOURS[list(methods).index(method) % len(COLOURS)]


def _face(way: str, methods: Sequence[str]) -> str | None:
    """Return white for the second kind of random projections, which has the grey of the first."""
    return "white" if way.startswith("random") and way != f"random {methods[0]}" else None


def _grid(n: int, width_in: float, height_in: float) -> tuple[Figure, list[Axes]]:
    columns = min(2, n)
    rows = math.ceil(n / columns)
    figure, axes = new_figure(rows, columns, width_in=width_in * columns, height_in=height_in * rows)
    for axis in axes[n:]:
        axis.set_visible(False)
    return figure, axes


def _of(frame: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    return frame[(frame["hook_point"] == pair[0]) & (frame["label"] == pair[1])]


def rounds_figure(rounds: pd.DataFrame, pairs: Sequence[Pair]) -> Figure:
    """Draw what a classifier fitted anew reads on select documents against the number of directions erased."""
    figure, axes = _grid(len(pairs), 4.2, 2.7)
    for axis, pair in zip(axes, pairs, strict=False):
        line = _of(rounds, pair)
        errors = np.stack([line["value"] - line["lo"], line["hi"] - line["value"]]).clip(0)
        axis.errorbar(
            line["rank"], line["value"], yerr=errors, color=COLOURS[0], marker="o", markersize=3, linewidth=1.2,
            elinewidth=0.8, capsize=1.5,
        )  # fmt: skip
        axis.axhline(float(line["chance"].iloc[0]), color="#555555", linestyle="--", linewidth=0.9)
        axis.set_xlabel("directions erased")
        axis.set_ylabel("balanced accuracy")
        axis.set_title(_title(pair), fontsize=9)
    return figure


def left_figure(scores: pd.DataFrame, pairs: Sequence[Pair], methods: Sequence[str]) -> Figure:
    """Draw the balanced accuracy of fresh probes of the erased label, by probe, before and after."""
    figure, axes = _grid(len(pairs), 4.8, 3.1)
    for axis, pair in zip(axes, pairs, strict=False):
        mine = _of(scores, pair)
        mine = mine[(mine["target"] == pair[1]) & (mine["metric"] == "balanced_accuracy")]
        probes = [each for each in PROBE_NAMES if each in set(mine["probe"])]
        ways = ["none", *methods, *(f"random {m}" for m in methods if f"random {m}" in set(mine["method"]))]
        for place, way in enumerate(ways):
            of_way = mine[mine["method"] == way].drop_duplicates("probe").set_index("probe")
            of_way = of_way.reindex([each for each in probes if each in of_way.index])
            x = np.array([probes.index(each) for each in of_way.index]) + 0.8 * ((place + 0.5) / len(ways) - 0.5)
            errors = np.stack([of_way["value"] - of_way["lo"], of_way["hi"] - of_way["value"]]).clip(0)
            axis.errorbar(
                x, of_way["value"], yerr=errors, fmt="s" if way.startswith("random") else "o", markersize=4,
                color=colour_of(way, methods), elinewidth=1, capsize=2, label=NAMES.get(way, way),
                markerfacecolor=_face(way, methods),
            )  # fmt: skip
        axis.axhline(float(mine["floor"].iloc[0]), color="#555555", linestyle="--", linewidth=0.9)
        axis.set_xticks(range(len(probes)), [PROBE_NAMES[each] for each in probes])
        axis.set_ylabel("balanced accuracy")
        axis.set_title(_title(pair), fontsize=9)
    _legend(figure, axes[0])
    return figure


def others_figure(scores: pd.DataFrame, pairs: Sequence[Pair], methods: Sequence[str]) -> Figure:
    """Draw the balanced accuracy of fresh probes of other labels, before and after."""
    tallest = max(scores["target"].nunique() - 1, 1)
    figure, axes = _grid(len(pairs), 4.8, 1.3 + 0.5 * tallest)
    for axis, pair in zip(axes, pairs, strict=False):
        mine = _of(scores, pair)
        mine = mine[(mine["target"] != pair[1]) & (mine["metric"] == "balanced_accuracy")]
        targets = list(dict.fromkeys(mine["target"]))
        ways = [way for way in ("none", *methods, *(f"random {m}" for m in methods)) if way in set(mine["method"])]
        for place, way in enumerate(ways):
            of_way = mine[mine["method"] == way].set_index("target").reindex(targets)
            y = np.arange(len(targets)) + 0.7 * ((place + 0.5) / len(ways) - 0.5)
            errors = np.stack([of_way["value"] - of_way["lo"], of_way["hi"] - of_way["value"]]).clip(0)
            axis.errorbar(
                of_way["value"], y, xerr=errors, fmt="s" if way.startswith("random") else "o", markersize=4,
                color=colour_of(way, methods), elinewidth=1, capsize=2, label=NAMES.get(way, way),
                markerfacecolor=_face(way, methods),
            )  # fmt: skip
        axis.axvline(0.5, color="#555555", linestyle="--", linewidth=0.9)
        axis.set_yticks(range(len(targets)), targets)
        axis.invert_yaxis()
        axis.set_xlabel("balanced accuracy")
        axis.set_title(_title(pair), fontsize=9)
    _legend(figure, axes[0])
    return figure


def live_figure(live: pd.DataFrame, pairs: Sequence[Pair], methods: Sequence[str]) -> Figure:
    """Draw how much the subject's loss rises with each projection in place, by kind of prediction."""
    kinds = live["where"].nunique()
    figure, axes = _grid(len(pairs), 5.2, 1.2 + 0.42 * kinds)
    for axis, pair in zip(axes, pairs, strict=False):
        mine = _of(live, pair)
        where = list(dict.fromkeys(mine["where"]))
        ways = [way for way in (*methods, *(f"random {m}" for m in methods)) if way in set(mine["method"])]
        for place, way in enumerate(ways):
            of_way = mine[mine["method"] == way].set_index("where").reindex(where)
            y = np.arange(len(where)) + 0.7 * ((place + 0.5) / len(ways) - 0.5)
            errors = np.stack([of_way["rise"] - of_way["lo"], of_way["hi"] - of_way["rise"]]).clip(0)
            axis.barh(
                y, of_way["rise"], height=0.7 / len(ways), xerr=errors, color=colour_of(way, methods),
                label=NAMES.get(way, way), error_kw={"elinewidth": 0.9, "capsize": 1.5, "ecolor": "#222222"},
                hatch="//" if _face(way, methods) else None, edgecolor="white",
            )  # fmt: skip
        axis.axvline(0, color="#555555", linewidth=0.9)
        numbers = mine.drop_duplicates("where").set_index("where")["n"]
        axis.set_yticks(range(len(where)), [f"{each} ({numbers[each]})" for each in where])
        axis.invert_yaxis()
        causal = mine["measure"].iloc[0] == "cross-entropy"
        axis.set_xlabel("rise of the loss, nats" if causal else "squared error, share of the output")
        axis.set_title(_title(pair), fontsize=9)
    _legend(figure, axes[0])
    return figure


def _legend(figure: Figure, axis: Axes) -> None:
    handles, names = axis.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)


def _title(pair: Pair) -> str:
    return f"{pair[1]} at {pair[0]}"
