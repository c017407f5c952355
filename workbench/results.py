"""What a plugin brings back: named metrics, tables, arrays, figures, weights, files and report sections.

The module is light (nothing heavy is imported until something is added), so that a plugin's entry module may import it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsFloat

from workbench.results_parts import Figure, File, Metric, Parts, Section, Weights

if TYPE_CHECKING:
    import matplotlib.figure
    import pandas
    import torch
    import xarray

    from workbench.results_table import Table

__all__ = ["Figure", "File", "Metric", "Result", "Section", "Weights"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass
class Result:
    """Named metrics, tables, arrays, figures, weights, files and sections, in the order in which they were added.

    Names consist of letters, digits and `-_.`, start with a letter or digit, and are unique within their kind without
    regard to case: most of them become file names.

    Attributes
    ----------
    metrics : dict of str to Metric
    tables : dict of str to pandas.DataFrame
        With a ``description`` and ``units`` by column.
    arrays : dict of str to xarray.DataArray
        With ``attrs["description"]`` and ``attrs["units"]``.
    figures : dict of str to Figure
        matplotlib's, to be restyled; images in a loaded result.
    weights, sections : dict
        Tensors of models, and components of the report.
    files : dict of str to File
        For other programs, by file name.
    folder : Path or None
        Where the result was last saved to or loaded from.

    Examples
    --------
    >>> result = Result()
    >>> result.add_metric("accuracy", 0.93, description="on held-out documents", lo=0.91, hi=0.95)
    >>> result.metrics["accuracy"].value
    0.93
    """

    metrics: dict[str, Metric] = field(default_factory=Parts)
    tables: "dict[str, Table]" = field(default_factory=Parts)
    arrays: "dict[str, xarray.DataArray]" = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=Parts)
    weights: dict[str, Weights] = field(default_factory=dict)
    sections: dict[str, Section] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    folder: Path | None = None

    def add_metric(
        self,
        name: str,
        value: SupportsFloat,
        *,
        unit: str = "",
        description: str,
        lo: SupportsFloat | None = None,
        hi: SupportsFloat | None = None,
    ) -> None:
        """Add one number, with its interval where it has one.

        Parameters
        ----------
        name : str
            New among the metrics.
        value : number
            Integers stay integers; NumPy scalars and one-element tensors are converted. NaN means "not defined".
        unit : str
            "" for a pure number.
        description : str
            One sentence: what was measured, on what, and which interval `lo` and `hi` are.
        lo, hi : number, optional
            Both or neither, lo <= hi.

        Raises
        ------
        ValueError
            For a bad or taken name, half an interval, or lo > hi.
        TypeError
            For a value that is not one number.
        """
        _require_free(name, self.metrics, "metric")
        low, high = (None if end is None else float(end) for end in (lo, hi))
        if (low is None) != (high is None):
            raise ValueError(f"metric {name!r}: lo={low}, hi={high}: give both ends of the interval or neither")
        if low is not None and high is not None and low > high:
            raise ValueError(f"metric {name!r}: lo={low} is above hi={high}")
        self.metrics[name] = Metric(_number(name, value), unit, description, low, high)

    def add_table(
        self, name: str, frame: "pandas.DataFrame", *, description: str, units: Mapping[str, str] | None = None
    ) -> None:
        """Add a table; later changes to `frame` do not reach it.

        Parameters
        ----------
        name : str
            New among the tables.
        frame : pandas.DataFrame
            Columns are named by unique strings; an index other than 0, 1, 2 … is kept and shown.
        description : str
            What a row is, and what to look for.
        units : mapping, optional
            Column name to unit, for the columns that have one.

        Raises
        ------
        ValueError
            For a bad or taken name, columns that are no unique strings, or a unit for a column that is not there.
        """
        _require_free(name, self.tables, "table")
        columns = list(frame.columns)
        if len(set(columns)) < len(columns) or not all(isinstance(column, str) for column in columns):
            raise ValueError(f"table {name!r}: columns must be unique strings, not {columns}")
        if unknown := sorted(set(units or {}) - set(columns)):
            raise ValueError(f"table {name!r}: units for {unknown}, which are not among its columns {columns}")
        from workbench.results_table import Table

        self.tables[name] = Table(frame.copy(), description, units)

    def add_array(self, name: str, data: "xarray.DataArray", *, description: str, unit: str = "") -> None:
        """Add an array with named axes.

        Parameters
        ----------
        name : str
            New among the arrays.
        data : xarray.DataArray
            Numbers, truth values or text; coordinates likewise.
        description : str
            What an entry is.
        unit : str
            Of the entries; "" for pure numbers.

        Raises
        ------
        ValueError
            For a bad or taken name, or axes and coordinates whose names are no strings or contain a slash.
        TypeError
            For something other than a DataArray, or entries that are no numbers, truth values or text.
        """
        _require_free(name, self.arrays, "array")
        if not hasattr(data, "dims") or not hasattr(data, "coords"):
            raise TypeError(f"array {name!r}: give an xarray.DataArray with named axes, not {type(data).__name__}")
        for axis in [*data.dims, *data.coords]:
            if not isinstance(axis, str) or not axis or "/" in axis:
                raise ValueError(f"array {name!r}: axis {axis!r} must be named by a string without a slash")
        for part, values in {"entries": data, **data.coords}.items():
            if not _storable(values.values):
                raise TypeError(f"array {name!r}: {part} of type {values.dtype} are no numbers, truth values or text")
        held = data.copy(deep=False)
        held.attrs = {"description": description, "units": unit}
        self.arrays[name] = held

    def add_figure(self, name: str, figure: "matplotlib.figure.Figure", *, description: str) -> None:
        """Add a figure made without pyplot (`workbench.report.new_figure`, or `matplotlib.figure.Figure`).

        Parameters
        ----------
        name : str
            New among the figures.
        figure : matplotlib.figure.Figure
            Drawn when saved or shown.
        description : str
            The caption: what is seen, and what to look for.

        Raises
        ------
        ValueError
            For a bad or taken name.
        TypeError
            For something other than a figure (axes, say).
        """
        _require_free(name, self.figures, "figure")
        if not hasattr(figure, "savefig"):
            raise TypeError(f"figure {name!r}: give a matplotlib Figure, not {type(figure).__name__}")
        self.figures[name] = Figure(figure, description)

    def add_weights(
        self,
        name: str,
        tensors: "Mapping[str, torch.Tensor]",
        *,
        description: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Add the tensors of a trained model; saved as one safetensors file.

        Parameters
        ----------
        name : str
            New among the weights.
        tensors : mapping of str to Tensor
            Any dtype and device; saved from the CPU, contiguous.
        description : str
            What the model is.
        config : mapping, optional
            What else one must know to use them, as plain JSON values; kept in ``result.json``.

        Raises
        ------
        ValueError
            For a bad or taken name, or no tensors.
        """
        _require_free(name, self.weights, "weights")
        if not tensors:
            raise ValueError(f"weights {name!r}: no tensors given")
        self.weights[name] = Weights(tensors, description, config)

    def add_file(self, name: str, data: str | bytes, *, description: str) -> None:
        """Add a file for other programs, kept as it is as ``files/NAME`` in the run folder.

        Parameters
        ----------
        name : str
            New among the files, with its ending: ``circuit.graphml``.
        data : str or bytes
            Its contents; a text is written as UTF-8.
        description : str
            What it holds, and who reads it.

        Raises
        ------
        ValueError
            For a bad or taken name.
        """
        _require_free(name, self.files, "file")
        self.files[name] = File(data.encode() if isinstance(data, str) else bytes(data), description)

    def add_section(self, name: str, kind: str, data: Any, description: str = "") -> None:
        """Add a component of the report.

        Parameters
        ----------
        name : str
            New among the sections; its heading, with `-` and `_` read as spaces.
        kind : str
            One of `workbench.report.KINDS`, such as "latents" or "text"; another kind is shown as plain data.
        data : JSON value
            Dicts with string keys, lists, strings, finite numbers, truth values, None.
        description : str
            One sentence above it.

        Raises
        ------
        ValueError
            For a bad or taken name, or data that JSON cannot hold (NaN among them).
        """
        _require_free(name, self.sections, "section")
        try:
            copied = json.loads(json.dumps(data, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"section {name!r}: data must be plain JSON without NaN: {error}") from error
        self.sections[name] = Section(kind, copied, description)

    def save(self, folder: str | Path, *, drawn: bool = True) -> None:
        """Write the result's files into `folder`, replacing those of an earlier result there.

        Parameters
        ----------
        folder : path
            Made if missing. Files of a run that are not the result's (manifest, log) are left alone.
        drawn : bool
            False leaves the figures out and keeps their names only: drawing may take longer than the work itself.
        """
        from workbench.results_files import save_result

        save_result(self, Path(folder), drawn=drawn)
        self.folder = Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Result":
        """Read a result back from a run folder.

        Parameters
        ----------
        folder : path
            A folder that `save` wrote.

        Returns
        -------
        Result
            As saved, but for figures, which come back as their images (`Figure.svg()`, `Figure.png()`).

        Raises
        ------
        UserError
            Where there is no result, or a file of it is missing or damaged; names the file.
        """
        from workbench.results_files import load_result

        return load_result(Path(folder))

    def __repr__(self) -> str:
        parts = ("metrics", "tables", "arrays", "figures", "weights", "files", "sections")
        held = "; ".join(f"{part}: {', '.join(names)}" for part in parts if (names := list(getattr(self, part))))
        return f"<Result {held or 'empty'}>"

    def _repr_html_(self) -> str:
        from workbench.display import result_html

        return result_html(self)


def _require_free(name: str, taken: Mapping[str, object], what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r}: a name has 1 to 120 letters, digits and -_. and starts with a letter or digit"
        )
    if any(name.lower() == other.lower() for other in taken):  # files of some systems do not tell case apart
        raise ValueError(f"{what} {name!r}: the result has one of this name already")


def _storable(values: Any) -> bool:
    return values.dtype.kind in "biufcU" or (
        values.dtype.kind == "O" and all(isinstance(entry, str) for entry in values.flat)
    )


def _number(name: str, value: Any) -> int | float:
    if hasattr(value, "item"):
        value = value.item()  # a NumPy scalar or a one-element tensor
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"metric {name!r}: value must be one number, not {value!r}")
    return value
