"""Heat maps of a batch: one measure over hook points and labels, with intervals, a panel for what else was crossed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.batching.jobs import Job, text_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 12
MOST_CELLS = 400  # with numbers in them; colours alone beyond that
POOLED = ("seed",)  # axes whose jobs share a cell


@dataclass(frozen=True)
class HeatMap:
    """What a heat map shows.

    Attributes
    ----------
    measure : str
        Of the table's column of that name.
    rows, columns : str
        Axes of the grid; "" for none.
    panels : list of (dict, DataFrame)
        What the other axes are, and ``value``, ``lo``, ``hi`` by row and column.
    n_left_out : int
        Panels beyond the first.
    """

    measure: str
    rows: str
    columns: str
    panels: list[tuple[dict[str, str], pd.DataFrame]]
    n_left_out: int


def measures_shown(table: pd.DataFrame, most: int = 3) -> list[str]:
    """Choose measures of one plugin's rows: those that most jobs have, with an interval before those without."""
    known = table[table["value"].notna()]
    n_jobs = known.groupby("measure", sort=False)["job"].nunique()
    with_interval = known[known["lo"].notna()].groupby("measure", sort=False)["job"].nunique()
    order = sorted(
        n_jobs.index, key=lambda name: (-with_interval.get(name, 0), -n_jobs[name])
    )  # stable: as jobs have it
    return [name for name in order if with_interval.get(name, 0) or not len(with_interval)][:most]


def heat_map_of(table: pd.DataFrame, jobs: Sequence[Job], measure: str, axes: Sequence[str]) -> HeatMap:
    """Arrange one measure of one plugin's jobs.

    Parameters
    ----------
    table : DataFrame
        The tidy table.
    jobs : sequence of Job
        Of the plugin.
    measure : str
        Which.
    axes : sequence of str
        Axes of the grid that vary. Hook points become rows and labels columns where they are among them; otherwise the
        first two axes do. Jobs that differ in their seed alone share a cell: their mean, and the widest interval.
    """
    mine = table[(table["measure"] == measure) & table["job"].isin([job.identity for job in jobs])]
    free = [key for key in axes if key not in POOLED] or [key for key in axes if key in POOLED]
    rows = "hook_point" if "hook_point" in free else next((key for key in free if key != "label"), "")
    columns = "label" if "label" in free else next((key for key in free if key != rows), "")
    others = [key for key in free if key not in (rows, columns)]
    for key in (rows, columns, *others):  # from the jobs: a column of the table may have made floats of whole numbers
        mine = (
            mine.assign(**{key: mine["job"].map({job.identity: text_of(job.axes[key]) for job in jobs})})
            if key
            else mine
        )
    panels = []
    for values, group in mine.groupby(others, sort=False) if others else [((), mine)]:
        keys = [key for key in (rows, columns) if key]
        pooled = group.groupby(keys, sort=False).agg({"value": "mean", "lo": "min", "hi": "max"}) if keys else group
        panels.append((dict(zip(others, map(str, values), strict=True)), pooled))
    return HeatMap(measure, rows, columns, panels[:MOST_PANELS], max(0, len(panels) - MOST_PANELS))


def draw(shown: HeatMap, *, rows: list[str], columns: list[str], unit: str = "") -> Figure:
    """Draw a heat map: the value in each cell, its interval under it.

    Parameters
    ----------
    shown : HeatMap
        Arranged.
    rows, columns : list of str
        All values of the two axes, in order; [""] for an axis that there is not. A cell without a job stays empty.
    unit : str
        Of the measure.
    """
    import numpy as np

    from workbench.report.figures import new_figure

    n = len(shown.panels)
    across = min(n, max(1, round(12 / max(4.0, 1.1 * len(columns) + 2))))
    down = math.ceil(n / across)
    width = min(16.0, across * max(3.4, 0.95 * len(columns) + 2.4))
    height = min(40.0, down * max(1.7, 0.42 * len(rows) + 1.3))
    figure, axes = new_figure(down, across, width_in=width, height_in=height)
    grids = [_grid(cells, shown, rows, columns) for _, cells in shown.panels]
    known = np.concatenate([grid[0][np.isfinite(grid[0])] for grid in grids] or [np.zeros(0)])
    lo, hi = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    image: Any = None
    for (others, _), grid, ax in zip(shown.panels, grids, axes, strict=False):
        image = ax.imshow(grid[0], vmin=lo, vmax=hi if hi > lo else lo + 1, cmap="viridis", aspect="auto")
        _label(ax, rows, columns)
        if others:
            ax.set_title(", ".join(f"{key} {value}" for key, value in others.items()), fontsize=9)
        if len(rows) * len(columns) <= MOST_CELLS:
            _write_cells(ax, grid, lo, hi)
    for ax in axes[n:]:
        ax.set_visible(False)
    if image is not None:
        bar = figure.colorbar(image, ax=axes[:n], shrink=0.8, pad=0.02)
        bar.set_label(shown.measure + (f" ({unit})" if unit else ""), fontsize=9)
        bar.outline.set_visible(False)
    if (engine := figure.get_layout_engine()) is not None:  # once, not for each format: it takes longer than drawing
        engine.execute(figure)
        figure.set_layout_engine("none")
    return figure


def _grid(cells: pd.DataFrame, shown: HeatMap, rows: list[str], columns: list[str]) -> tuple[Any, Any, Any]:
    """Return value, lo and hi as arrays [rows, columns], NaN where there is no job."""
    import numpy as np

    found = np.full((3, len(rows), len(columns)), np.nan)
    for index, values in cells[["value", "lo", "hi"]].iterrows():
        keys = dict(zip((key for key in (shown.rows, shown.columns) if key), _tuple(index), strict=False))
        at = rows.index(keys.get(shown.rows, "")), columns.index(keys.get(shown.columns, ""))
        found[:, at[0], at[1]] = values
    return found[0], found[1], found[2]


def _tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _label(ax: Axes, rows: list[str], columns: list[str]) -> None:
    ax.grid(visible=False)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.set_xticks(range(len(columns)), columns, rotation=30 if max(map(len, columns)) > 8 else 0, ha="right")
    if max(map(len, columns)) <= 8:
        for tick in ax.get_xticklabels():
            tick.set_horizontalalignment("center")
    ax.set_yticks(range(len(rows)), rows)
    ax.tick_params(length=0)


def _write_cells(ax: Axes, grid: tuple[Any, Any, Any], lo: float, hi: float) -> None:
    values, low, high = grid
    digits = max(0, min(4, 2 - math.floor(math.log10(hi - lo)))) if hi > lo else 3
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = values[row, column]
            if not math.isfinite(value):
                ax.text(column, row, "–", ha="center", va="center", fontsize=8, color="#888888")
                continue
            dark = (value - lo) < 0.6 * (hi - lo) if hi > lo else True
            colour = "white" if dark else "black"
            interval = math.isfinite(low[row, column]) and math.isfinite(high[row, column])
            ax.text(
                column, row - (0.12 if interval else 0), f"{value:.{digits}f}",
                ha="center", va="center", fontsize=8, color=colour,
            )  # fmt: skip
            if interval:
                ends = f"{low[row, column]:.{digits}f} – {high[row, column]:.{digits}f}"
                ax.text(column, row + 0.24, ends, ha="center", va="center", fontsize=6.5, color=colour)
