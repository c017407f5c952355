"""The figures of a run of `sae`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.report.figures import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from workbench.results import Metric

POINTS = 400  # of a curve; a training has thousands of steps
MARKERS, LINES = "osD^v", ("-", "--", ":", "-.")  # once all colours are used up
MOST_TICKS = 8
MOST_NAMED = 14  # lines that a legend has room for


def thinned(values: NDArray[np.float64], points: int = POINTS) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return means over stretches of steps [points, ...], and the last step of each stretch."""
    bounds = np.unique(np.linspace(0, len(values), min(points, len(values)) + 1).astype(np.int64))
    sums = np.add.reduceat(values, bounds[:-1], axis=0)
    shape = (-1,) + (1,) * (values.ndim - 1)
    return sums / np.diff(bounds).reshape(shape), bounds[1:] - 1


def loss_curves(history: NDArray[np.float64], rows_per_step: float) -> Figure:
    """Draw errors, active latents, dead latents; `history` [steps, 6] as `trainer.HISTORY` names it."""
    means, steps = thinned(history)
    error, penalty, auxiliary, l0, dead_latents, _ = means.T
    rows = (steps + 1) * rows_per_step
    figure, (losses, active, dead) = new_figure(1, 3, width_in=10.5)
    losses.plot(rows, error, label="reconstruction")
    if (penalty > 0).any():
        losses.plot(rows, penalty, label="sparsity penalty")
    shown = auxiliary > 0
    if shown.any():
        losses.plot(rows[shown], auxiliary[shown], ".", markersize=3, label="auxiliary (dead latents)")
    losses.set(yscale="log", xlabel="training rows", ylabel="share of the variance left over")
    losses.legend()
    active.plot(rows, l0)
    active.set(xlabel="training rows", ylabel="active latents of a row", ylim=(0, None))
    dead.plot(rows, dead_latents)
    dead.set(xlabel="training rows", ylabel="dead latents", ylim=(0, None))
    return figure


def explained_curve(checks: list[tuple[int, float]], random: float) -> Figure:
    """Draw explained variance of held-out rows over the training, with the random dictionary's as a line."""
    rows, explained = zip(*checks, strict=True)
    figure, (axes,) = new_figure()
    axes.plot(rows, explained, label="dictionary")
    if random > -1:
        axes.axhline(random, color="#7f7f7f", linestyle="--", label="random dictionary")
    axes.axhline(0, color="#7f7f7f", linewidth=0.8, label="mean")
    axes.set(xlabel="training rows", ylabel="explained variance, held-out rows", ylim=(None, 1))
    axes.legend()
    return figure


def frontier(points: list[tuple[str, str, Metric, Metric]], name: str) -> Figure:
    """Draw a metric over L0 with its intervals.

    Parameters
    ----------
    points : list of (str, str, Metric, Metric)
        Of each dictionary: its kind, which has a colour and a line; what it has in common with other seeds, through
        whose mean the line goes; L0, and the metric.
    name : str
        Of the metric.
    """
    from matplotlib.ticker import NullLocator

    figure, (axes,) = new_figure()
    kinds = list(dict.fromkeys(kind for kind, *_ in points))
    for number, kind in enumerate(kinds):
        of_kind = [(family, l0, metric) for each, family, l0, metric in points if each == kind]
        families = dict.fromkeys(family for family, *_ in of_kind)
        means = [np.mean([(l0.value, y.value) for each, l0, y in of_kind if each == family], 0) for family in families]
        x, y = np.array(sorted(means, key=lambda mean: float(mean[0]))).T
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
        axes.plot(x, y, color=colour, linewidth=1)
        l0, metric = [each for _, each, _ in of_kind], [each for _, _, each in of_kind]
        axes.errorbar(
            [each.value for each in l0], [each.value for each in metric], xerr=reach_of(l0), yerr=reach_of(metric),
            color=colour, marker=marker, markersize=4, linestyle="", elinewidth=0.8, label=kind,
        )  # fmt: skip
    axes.set(xlabel="active latents of a row", ylabel=name.replace("_", " "), xscale="log")
    seen = sorted({float(f"{l0.value:.2g}") for *_, l0, _ in points})
    axes.set_xticks(seen[:: -(-len(seen) // MOST_TICKS)])  # decades, the default, may leave one tick or none
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    if kinds != [""]:
        axes.legend(fontsize=7)
    return figure


def reach_of(metrics: list[Metric]) -> NDArray[np.float64]:
    """Return how far intervals reach below and above their values, [2, metrics]; 0 where there is none."""
    ends = [(m.value if m.lo is None else m.lo, m.value if m.hi is None else m.hi) for m in metrics]
    reach = [(max(0.0, m.value - lo), max(0.0, hi - m.value)) for m, (lo, hi) in zip(metrics, ends, strict=True)]
    return np.array(reach, np.float64).T


def curves_of_many(checks: dict[str, list[tuple[int, float]]]) -> Figure:
    """Draw explained variance of held-out rows over the training, a line for each dictionary, by name."""
    figure, (axes,) = new_figure()
    for number, (name, points) in enumerate(checks.items()):
        rows, explained = zip(*points, strict=True)
        axes.plot(rows, explained, linestyle=LINES[number // len(COLOURS) % len(LINES)], linewidth=1, label=name)
    axes.axhline(0, color="#7f7f7f", linewidth=0.8)
    axes.set(xlabel="training rows", ylabel="explained variance, held-out rows", ylim=(max(-1, axes.get_ylim()[0]), 1))
    if len(checks) <= MOST_NAMED:
        axes.legend(fontsize=7, ncols=1 + (len(checks) > 7))
    return figure


def density_histogram(density: NDArray[np.float64], n_rows: int) -> Figure:
    """Draw how often latents are active, log10; those never active stand at the left edge."""
    floor = 1 / n_rows
    logs = np.log10(np.maximum(density, floor / 10))
    figure, (axes,) = new_figure()
    axes.hist(logs, bins=np.linspace(np.log10(floor / 10), 0, 50).tolist())
    never = int((density == 0).sum())
    axes.axvline(np.log10(floor), color="#7f7f7f", linestyle="--", label=f"one row in {n_rows:,}")
    axes.set(xlabel=f"log10 share of held-out rows on which a latent is active ({never} never)", ylabel="latents")
    axes.legend()
    return figure


def share_histogram(largest: dict[str, NDArray[np.float64]], kind: str, n_parts: int) -> Figure:
    """Draw each latent's largest share of one part, for the dictionary and the random one."""
    bins = np.linspace(1 / n_parts, 1, 40).tolist()
    figure, (axes,) = new_figure()
    axes.hist(largest["dictionary"], bins=bins, label="dictionary")
    axes.hist(largest["random"], bins=bins, histtype="step", linewidth=1.4, label="random dictionary")
    axes.set(xlabel=f"largest share of a latent's decoder row in one {kind}", ylabel="latents")
    axes.legend()
    return figure


def cosine_histogram(trained: NDArray[np.float64], random: NDArray[np.float64]) -> Figure:
    """Draw each latent's largest cosine with another latent's decoder direction, trained and random."""
    lo = float(min(trained.min(), random.min()))
    bins = np.linspace(lo, 1, 50).tolist()
    figure, (axes,) = new_figure()
    axes.hist(trained, bins=bins, label="dictionary")
    axes.hist(random, bins=bins, histtype="step", linewidth=1.4, label="random directions")
    axes.set(xlabel="largest cosine with another latent's decoder direction", ylabel="latents")
    axes.legend()
    return figure
