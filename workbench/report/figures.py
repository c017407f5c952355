"""One look for the figures of all plugins, without pyplot and its global state."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers as well (https://jfly.uni-koeln.de/color/)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")

# Only what takes effect when axes are made; what a legend or a title looks like is decided later.
_STYLE: dict[str, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 9,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def new_figure(
    n_rows: int = 1, n_columns: int = 1, *, width_in: float = 6.4, height_in: float = 3.4, **subplots: Any
) -> "tuple[Figure, list[Axes]]":
    """Make an empty figure in the reports' style.

    Parameters
    ----------
    n_rows, n_columns : int
        Axes in the figure.
    width_in, height_in : float
        Of the whole figure, in inches.
    **subplots
        Passed to `Figure.subplots` (`sharex`, `width_ratios`, …).

    Returns
    -------
    figure : matplotlib.figure.Figure
        For `Result.add_figure`.
    axes : list of matplotlib.axes.Axes
        Row by row.
    """
    import matplotlib
    from matplotlib import rcsetup
    from matplotlib.figure import Figure

    style: Any = {**_STYLE, "axes.prop_cycle": rcsetup.cycler(color=COLOURS)}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        axes = figure.subplots(n_rows, n_columns, squeeze=False, **subplots)
    return figure, list(axes.flat)
