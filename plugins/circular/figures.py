"""Figures: the best clusters' planes, the ranking, frequencies, interventions, the profile, and inside the circle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.report import new_figure
from workbench.report.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#a8a8a8"
POINTS = 1500
LETTERS = 3  # of a word that stands in a figure
SHORT = {
    "all: from a run with the other operand": "all, from a run with the other",
    "all but the best plane at its mean": "all but best plane at mean",
    "all but the whole feature at its mean": "all but feature at mean",
}


@dataclass(frozen=True)
class Panel:
    """One cluster's best plane: points [n, 2], the class of each (−1: none), and what stands above it."""

    xy: np.ndarray
    classes: np.ndarray
    words: tuple[str, ...]
    title: str


def around(n: int) -> np.ndarray:
    """Return colours [n] that go round in a circle."""
    from matplotlib import colormaps

    return np.asarray(colormaps["twilight_shifted"]((np.arange(n) + 0.5) / n))


def _grid(n: int, columns: int, width_in: float, height_in: float, **options: Any) -> tuple[Figure, list[Axes]]:
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    figure, axes = new_figure(rows, columns, width_in=width_in * columns, height_in=height_in * rows, **options)
    for axis in axes[n:]:
        axis.set_visible(False)
    return figure, axes


def clusters_figure(panels: Sequence[Panel]) -> Figure:
    """Draw each cluster's best plane; points of a named cluster have a colour for each class and its word."""
    figure, axes = _grid(len(panels), 3, 2.7, 2.7)
    for axis, panel in zip(axes, panels, strict=False):
        step = max(1, len(panel.xy) // POINTS)
        xy, classes = panel.xy[::step], panel.classes[::step]
        named = classes >= 0
        axis.scatter(xy[~named, 0], xy[~named, 1], s=4, color=GREY, linewidths=0, rasterized=True)
        if named.any():
            colours = around(len(panel.words))
            axis.scatter(xy[named, 0], xy[named, 1], s=16, c=colours[classes[named]], linewidths=0, rasterized=True)
            for each, word in enumerate(panel.words):
                mine = panel.xy[panel.classes == each]
                if len(mine) and len(panel.words) <= 14:
                    axis.annotate(
                        word[:LETTERS], np.median(mine, axis=0), fontsize=7, ha="left", va="bottom",
                        xytext=(3, 2), textcoords="offset points",
                    )  # fmt: skip
        axis.set_title(panel.title, fontsize=8)
        axis.set_aspect("equal", adjustable="datalim")
        axis.tick_params(labelsize=6)
    return figure


def ranking_figure(frame: pd.DataFrame) -> Figure:
    """Draw mean separability against mean mixture of each cluster, named ones with their label."""
    figure, (axis,) = new_figure(width_in=5.2, height_in=3.2)
    good = frame["p_holm"] < 0.05
    axis.scatter(
        frame["mixture"][~good],
        frame["separability"][~good],
        s=22,
        color=GREY,
        label="like chance, or too large to be tested",
    )
    axis.scatter(
        frame["mixture"][good], frame["separability"][good], s=30, color=COLOURS[0], label="p < 0.05, Holm's correction"
    )
    for _, row in frame[frame["label"] != ""].iterrows():
        axis.annotate(
            f"{row['label']} ({row['rank']})", (row["mixture"], row["separability"]), xytext=(5, 4),
            textcoords="offset points", fontsize=8,
        )  # fmt: skip
    axis.invert_xaxis()
    axis.set_xlabel("ε-mixture index M (mean over planes)")
    axis.set_ylabel("separability S, nats")
    axis.legend(fontsize=7, frameon=False, loc="best")
    return figure


def frequencies_figure(frame: pd.DataFrame) -> Figure:
    """Draw each feature's share of variance by frequency."""
    features = list(dict.fromkeys(frame["label"]))
    figure, axes = _grid(len(features), 2, 3.6, 2.2)
    for axis, name in zip(axes, features, strict=False):
        mine = frame[frame["label"] == name]
        colours = [COLOURS[1] if named else COLOURS[0] for named in mine["named"]]
        axis.bar(mine["frequency"], mine["share"], color=colours, width=0.7)
        axis.axhline(float(mine["chance"].iloc[0]), color="#555555", linestyle="--", linewidth=0.9)
        axis.set_xlabel("frequency")
        axis.set_ylabel("share of variance")
        axis.set_title(name, fontsize=9)
        if len(mine) <= 12:
            axis.set_xticks(list(mine["frequency"]))
    return figure


def bars_figure(frame: pd.DataFrame, value: str, lo: str, hi: str, x_label: str) -> Figure:
    """Draw one bar for each way, a panel for each label, with intervals."""
    labels = list(dict.fromkeys(frame["label"]))
    tallest = max(int((frame["label"] == name).sum()) for name in labels)
    figure, axes = _grid(len(labels), 2, 4.6, 0.9 + 0.19 * tallest)
    for axis, name in zip(axes, labels, strict=False):
        mine = frame[frame["label"] == name]
        places = np.arange(len(mine))
        errors = np.stack([mine[value] - mine[lo], mine[hi] - mine[value]]).clip(0)
        colours = [GREY if "random" in way or "as many other" in way else COLOURS[0] for way in mine["way"]]
        axis.barh(
            places, mine[value], xerr=errors, color=colours, height=0.7,
            error_kw={"elinewidth": 0.8, "capsize": 1.5, "ecolor": "#222222"},
        )  # fmt: skip
        axis.set_yticks(places, [_short(str(way)) for way in mine["way"]], fontsize=6.5)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.02)
        axis.set_xlabel(x_label)
        axis.set_title(name, fontsize=9)
    return figure


def _short(way: str) -> str:
    way = SHORT.get(way, way)
    return way.split(", dimension and norm")[0].split(", norm of the best")[0]


def profile_figure(moves: pd.DataFrame, probes: pd.DataFrame) -> Figure:
    """Draw by hook point and position the share of answers moved, and R² of the circle probes of frequency 1."""
    labels = list(dict.fromkeys(probes["label"]))
    figure, axes = new_figure(len(labels), 2, width_in=10.4, height_in=0.7 + 2.1 * len(labels), sharey=True)
    for row, name in enumerate(labels):
        left, right = axes[2 * row], axes[2 * row + 1]
        mine = probes[(probes["label"] == name) & (probes["frequency"] == probes["frequency"].min())]
        hooks = list(dict.fromkeys(mine["hook_point"]))
        for number, (position, what) in enumerate(
            [("operand", "operand"), ("answer", "operand"), ("answer", "answer")]
        ):
            line = mine[(mine["position"] == position) & (mine["circle_of"] == what)].set_index("hook_point")
            line = line.reindex(hooks)
            errors = np.stack([line["r2"] - line["lo"], line["hi"] - line["r2"]]).clip(0)
            left.errorbar(
                np.arange(len(hooks)), line["r2"].clip(-0.1), yerr=errors, marker="o", markersize=3, capsize=2,
                color=COLOURS[number], label=f"circle of the {what}, at the {position}", linewidth=1,
            )  # fmt: skip
        left.set_ylim(-0.12, 1.05)
        left.set_title(f"{name}: R² of a circle probe", fontsize=9)
        here = moves[moves["label"] == name] if len(moves) else moves
        for number, (position, way) in enumerate(
            [(p, w) for p in ("operand", "answer") for w in dict.fromkeys(here["way"] if len(here) else [])]
        ):
            line = here[(here["position"] == position) & (here["way"] == way)].set_index("hook_point").reindex(hooks)
            right.plot(
                np.arange(len(hooks)), line["moved"], marker="os^Dv"[number % 5], markersize=4, linewidth=1,
                color=COLOURS[number % len(COLOURS)], label=f"{way}, {position}",
            )  # fmt: skip
        right.set_title(f"{name}: answers moved", fontsize=9)
        right.set_visible(len(here) > 0)
        for axis in (left, right) if len(here) else (left,):
            axis.set_xticks(np.arange(len(hooks)), [hook.replace("hook_", "") for hook in hooks], fontsize=6.5)
            axis.tick_params(labelleft=True)
            axis.legend(fontsize=6, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def inside_figure(grids: Sequence[tuple[str, tuple[str, ...], Mapping[str, Any]]]) -> Figure:
    """Draw which operand the answers stand for, the circle's point set to each place of a polar grid."""
    figure, axes = _grid(len(grids), 4, 2.5, 2.8, subplot_kw={"projection": "polar"})
    for axis, (title, words, grid) in zip(axes, grids, strict=False):
        radius, turn = np.array(grid["radius"]), np.array(grid["turn"])
        operand, agreement = np.array(grid["operand"]), np.array(grid["agreement"])
        colours = around(len(words))[operand].copy()
        colours[..., 3] = 0.25 + 0.75 * agreement
        rings = np.concatenate([[0], (radius[1:] + radius[:-1]) / 2, [radius[-1] + 0.25]])
        step = 2 * np.pi / len(turn)
        angles = np.append(turn, 1) * 2 * np.pi - step / 2
        mesh = axis.pcolormesh(angles, rings, agreement, shading="flat")
        mesh.set_array(None)
        mesh.set_facecolor(colours.reshape(-1, 4))
        axis.plot(np.linspace(0, 2 * np.pi, 200), np.ones(200), color="black", linewidth=0.8, linestyle=":")
        axis.grid(visible=False)
        axis.set_yticks([])
        if len(words) <= 14 and grid["whole"]:
            axis.set_xticks(2 * np.pi * np.arange(len(words)) / len(words), [w[:LETTERS] for w in words], fontsize=6)
        else:
            axis.set_xticks([])
        axis.set_title(title, fontsize=8)
    return figure
