"""Figures: scores of nodes by layer and head, what is found of a known circuit, what circuits of each size do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from workbench.plugins.circuit.graph import Graph
from workbench.plugins.circuit.known import Known
from workbench.report import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#a8a8a8"
NAMES = {
    "noising": "noising",
    "denoising": "denoising",
    "eap": "EAP",
    "eap-ig": "EAP-IG",
    "discrete-sae": "discrete SAE",
    "random": "random scores",
}
UNIT_NAMES = {"nodes": "nodes", "edges": "edges", "pairs": "pairs of heads", "node-via-pairs": "nodes via pairs"}


def colour_of(method: str) -> str:
    """Return a method's colour, the same in all figures."""
    return GREY if method == "random" else COLOURS[list(NAMES).index(method)]


def nodes_figure(graph: Graph, means: Mapping[str, np.ndarray], known: Known | None) -> Figure:
    """Draw each method's scores of nodes, by layer and head; a known circuit's nodes are framed, shadows dotted."""
    columns = min(2, len(means))
    rows = -(-len(means) // columns)
    width = graph.n_heads + graph.mlps
    figure, axes = new_figure(
        rows,
        columns,
        width_in=columns * max(3.2, 0.3 * width + 1.6),
        height_in=rows * max(2.2, 0.24 * graph.n_layers + 1.2),
    )
    for axis in axes[len(means) :]:
        axis.set_visible(False)
    for axis, (method, mean) in zip(axes, means.items(), strict=False):
        grid = mean[1:].reshape(graph.n_layers, width)
        largest = np.nanmax(np.abs(grid)) if np.isfinite(grid).any() else 1.0
        image = axis.imshow(grid, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02).ax.tick_params(labelsize=7)
        axis.grid(visible=False)
        axis.set_xticks(range(width), [*map(str, range(graph.n_heads)), *["MLP"] * graph.mlps])
        axis.set_yticks(range(graph.n_layers))
        axis.set_xlabel("head")
        axis.set_ylabel("layer")
        axis.set_title(NAMES[method], fontsize=9)
        if known is not None:
            frame(axis, known.nodes[1:].reshape(graph.n_layers, width), "-")
            frame(axis, known.shadows(graph)[1:].reshape(graph.n_layers, width), ":")
    return figure


def frame(axis: Axes, chosen: np.ndarray, style: str) -> None:
    """Draw a frame around some cells of a grid."""
    from matplotlib.patches import Rectangle

    for row, column in np.argwhere(chosen):
        axis.add_patch(
            Rectangle(
                (column - 0.45, row - 0.43), 0.9, 0.86, fill=False, edgecolor="#111111", linewidth=1.6, linestyle=style
            )
        )


def truth_figure(truth: pd.DataFrame, copies: pd.DataFrame) -> Figure:
    """Draw the area of each method and kind of unit, with permuted labels and copies with random weights beside it."""
    rows = truth.reset_index(drop=True)
    figure, (axis,) = new_figure(width_in=6.4, height_in=1.3 + 0.38 * len(rows))
    for at, row in rows.iterrows():
        y = float(str(at))
        axis.plot([row["permuted_lo"], row["permuted_hi"]], [y, y], color="#dddddd", linewidth=8, solid_capstyle="butt")
        axis.errorbar(
            row["auc"],
            y,
            xerr=np.nan_to_num([[max(row["auc"] - row["lo"], 0)], [max(row["hi"] - row["auc"], 0)]]),
            fmt="o",
            color=colour_of(row["method"]),
            capsize=2.5,
            markersize=5,
        )
        if len(copies):
            mine = copies[(copies["method"] == row["method"]) & (copies["units"] == row["units"])]["auc"]
            axis.plot(mine, [y] * len(mine), "x", color="#777777", markersize=5)
    axis.axvline(0.5, color="#555555", linestyle="--", linewidth=0.9)
    axis.set_yticks(
        range(len(rows)), [f"{NAMES[m]}, {UNIT_NAMES[u]}" for m, u in zip(rows["method"], rows["units"], strict=True)]
    )
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("area under the ROC curve (ties count one half)")
    return figure


def curve_figure(curve: pd.DataFrame, methods: Sequence[str]) -> Figure:
    """Draw how much of the task circuits of each size do: of edges on the left, of nodes on the right."""
    with_edges = [method for method in methods if ((curve["method"] == method) & (curve["order"] == "magnitude")).any()]
    figure, axes = new_figure(1, 2 if with_edges else 1, width_in=8.4 if with_edges else 4.8, height_in=3.3)
    panels: list[tuple[Axes, str, Sequence[str]]] = [(axes[-1], "nodes", methods)]
    if with_edges:
        panels.insert(0, (axes[0], "magnitude", with_edges))
    for axis, order, shown in panels:
        for method in shown:
            line = curve[(curve["method"] == method) & (curve["order"] == order)]
            x = line["share"] if order == "magnitude" else line["size"]
            style = "--" if method == "random" else "-"
            axis.plot(
                x, line["faithfulness"], style, marker="o", markersize=3, color=colour_of(method), label=NAMES[method]
            )
            axis.fill_between(x, line["lo"], line["hi"], color=colour_of(method), alpha=0.15, linewidth=0)
            if order == "magnitude" and method == "eap-ig":
                axis.plot(x, line["complement"], ":", color=colour_of(method), label="all edges but EAP-IG's")
        axis.axhline(1, color="#555555", linewidth=0.8, linestyle="--")
        axis.axhline(0, color="#555555", linewidth=0.8)
        shown_values = curve[curve["order"] == order]["faithfulness"]
        axis.set_ylim(max(-1.0, min(-0.1, shown_values.min() - 0.1)), min(2.0, max(1.15, shown_values.max() + 0.1)))
        axis.set_ylabel("faithfulness")
        if order == "magnitude":
            axis.set_xscale("log")
            axis.set_xlabel("share of the edges kept, strongest first")
        else:
            axis.set_xlabel("nodes kept, with all edges between them")
    handles, names = axes[0].get_legend_handles_labels()
    for handle, name in zip(*axes[-1].get_legend_handles_labels(), strict=True):
        if name not in names:
            handles, names = [*handles, handle], [*names, name]
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def minimality_figure(minimality: pd.DataFrame, roles: Mapping[str, str]) -> Figure:
    """Draw what the circuit loses as each of its nodes leaves it."""
    figure, (axis,) = new_figure(width_in=5.6, height_in=1.2 + 0.25 * len(minimality))
    y = np.arange(len(minimality))
    errors = np.stack([minimality["lost"] - minimality["lo"], minimality["hi"] - minimality["lost"]]).clip(0)
    axis.barh(y, minimality["lost"], xerr=errors, color=COLOURS[3], error_kw={"elinewidth": 0.9, "capsize": 1.5})
    names = [f"{node}  {roles[node]}" if roles.get(node) else node for node in minimality["node"]]
    axis.set_yticks(y, names)
    axis.invert_yaxis()
    axis.axvline(0, color="#555555", linewidth=0.9)
    axis.set_xlabel("faithfulness lost as the node leaves the circuit")
    return figure
