"""Figures: layers ablated, neurons with their images and texts, agreement with controls, maps over images."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.plugins.second_order.ablation import FIRST, INDIRECT, SECOND
from workbench.plugins.second_order.maps import METHODS
from workbench.report import new_figure
from workbench.report.figures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR_OF = {SECOND: COLOURS[0], FIRST: COLOURS[1], INDIRECT: COLOURS[6]}
IMAGE_IN = 0.95  # of a picture, in inches
OVERLAY = 0.55  # opacity of a map over an image


def ablation_figure(rows: pd.DataFrame) -> Figure:
    """Draw accuracy (or the embedding's change) when one layer's neurons are held at their mean, layer by layer."""
    measure = "accuracy" if "accuracy" in rows else "change"
    figure, (axis,) = new_figure(width_in=6.0, height_in=3.2)
    for effect, colour in COLOUR_OF.items():
        line = rows[rows["effect"] == effect]
        if not len(line):
            continue
        errors = None
        if measure == "accuracy":
            errors = np.stack([line["accuracy"] - line["lo"], line["hi"] - line["accuracy"]]).clip(0)
        axis.errorbar(
            line["layer"], line[measure], yerr=errors, color=colour, marker="o", markersize=4, linewidth=1.3,
            elinewidth=0.9, capsize=2, label=effect,
        )  # fmt: skip
    if measure == "accuracy":
        clean = rows[rows["effect"] == "none"].iloc[0]
        axis.axhline(clean["accuracy"], color="#3c3c3c", linestyle="--", linewidth=0.9, label="nothing ablated")
    else:
        axis.set_yscale("log")
    axis.set_xticks(sorted(set(rows["layer"]) - {-1}))
    axis.set_xlabel("layer whose neurons are held at their mean")
    axis.set_ylabel("zero-shot accuracy" if measure == "accuracy" else "squared change of the embedding")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def agreement_figure(rows: pd.DataFrame) -> Figure:
    """Draw of how many selective neurons the texts name the concept, beside what must be chance."""
    figure, (axis,) = new_figure(width_in=5.6, height_in=0.9 + 0.36 * len(rows))
    y = np.arange(len(rows))
    is_neurons = rows["what"] == "neurons"
    errors = np.stack([rows["share"] - rows["lo"], rows["hi"] - rows["share"]]).clip(0)
    colours = [COLOURS[0] if real else "#a8a8a8" for real in is_neurons]
    axis.barh(y, rows["share"], xerr=errors, color=colours, height=0.62, error_kw={"elinewidth": 0.9, "capsize": 2})
    axis.plot(
        rows["chance"], y, "|", color="#d55e00", markersize=13, markeredgewidth=1.6, label="concepts renamed at random"
    )
    names = [
        f"{what}, by {how}" if real else what
        for what, how, real in zip(rows["what"], rows["selective_by"], is_neurons, strict=True)
    ]
    axis.set_yticks(y, names)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("share whose texts name what they are selective for")
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    return figure


def neurons_figure(shown: Sequence[dict[str, Any]]) -> Figure:
    """Draw neurons with the images where their effects reach furthest, activations laid over, and their texts.

    Parameters
    ----------
    shown : sequence of dict
        ``title``, ``texts``, ``images`` (arrays [height, width, 3]) and ``maps`` (arrays [height, width]).
    """
    n_images = max(len(each["images"]) for each in shown)
    figure, axes = new_figure(
        len(shown), 1 + n_images, width_in=2.9 + n_images * IMAGE_IN, height_in=len(shown) * IMAGE_IN * 1.06,
        width_ratios=[2.9 / IMAGE_IN, *[1] * n_images],
    )  # fmt: skip
    for row, each in enumerate(shown):
        said, *places = axes[row * (1 + n_images) : (row + 1) * (1 + n_images)]
        said.axis("off")
        said.text(0, 0.97, each["title"], fontsize=8, weight="bold", va="top", transform=said.transAxes)
        said.text(
            0, 0.74, textwrap.fill(each["texts"], 46, max_lines=5), fontsize=7.2, va="top", transform=said.transAxes
        )
        top = max(float(m.max()) for m in each["maps"])
        for axis in places:
            axis.axis("off")
        for axis, image, values in zip(places, each["images"], each["maps"], strict=False):
            overlaid(axis, image, values, 0.0, top)
    return figure


def overlaid(axis: Axes, image: np.ndarray, values: np.ndarray | None, low: float, high: float) -> None:
    """Show an image in grey with a map over it, or the image alone in its colours."""
    axis.axis("off")
    if values is None:
        axis.imshow(image, interpolation="nearest")
        return
    axis.imshow(image, interpolation="nearest")
    share = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    axis.imshow(values, cmap="inferno", vmin=low, vmax=high, alpha=OVERLAY * share**0.7, interpolation="nearest")


def maps_figure(shown: Sequence[dict[str, Any]]) -> Figure:
    """Draw test images, their masks and each method's map.

    Parameters
    ----------
    shown : sequence of dict
        ``image`` [height, width, 3], ``mask`` [height, width], ``said`` (what it is taken for) and ``maps`` by method.
    """
    columns = ["image", "mask", *METHODS]
    figure, axes = new_figure(len(shown), len(columns), width_in=1.35 * len(columns), height_in=1.45 * len(shown))
    for row, each in enumerate(shown):
        places = axes[row * len(columns) : (row + 1) * len(columns)]
        for axis, name in zip(places, columns, strict=True):
            axis.axis("off")
            if row == 0:
                axis.set_title(name, fontsize=9)
            if name == "image":
                axis.imshow(each["image"], interpolation="nearest")
                axis.text(
                    0, -0.03, textwrap.shorten(each["said"], 30), fontsize=6.5, va="top", transform=axis.transAxes
                )
            elif name == "mask":
                axis.imshow(each["mask"], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            else:
                axis.imshow(each["maps"][name], cmap="inferno", interpolation="nearest")
    return figure


def segmentation_figure(rows: pd.DataFrame) -> Figure:
    """Draw the mIoU of each method with its interval, a panel for each question, a group of bars for each label."""
    mine = rows[rows["measure"] == "mIoU"]
    questions = list(dict.fromkeys(mine["question"]))
    labels = {question: list(dict.fromkeys(mine["label"][mine["question"] == question])) for question in questions}
    figure, axes = new_figure(
        1, len(questions), width_in=1.6 + 1.25 * sum(map(len, labels.values())), height_in=3.0,
        width_ratios=[len(each) for each in labels.values()],
    )  # fmt: skip
    for axis, question in zip(axes, questions, strict=True):
        for number, (method, colour) in enumerate(zip(METHODS, (COLOURS[0], "#a8a8a8", COLOURS[1]), strict=True)):
            held = mine[(mine["question"] == question) & (mine["method"] == method)].set_index("label")
            held = held.reindex(labels[question])
            errors = np.stack([held["value"] - held["lo"], held["hi"] - held["value"]]).clip(0)
            axis.bar(
                np.arange(len(held)) + 0.27 * (number - 1), held["value"], yerr=errors, color=colour, width=0.25,
                error_kw={"elinewidth": 0.9, "capsize": 2}, label=method,
            )  # fmt: skip
        axis.set_xticks(range(len(labels[question])), labels[question], fontsize=8)
        axis.set_ylim(0, 1)
        axis.set_title(question, fontsize=9)
    axes[0].set_ylabel("mIoU")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure
