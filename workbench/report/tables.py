"""A pandas table as text: numbers aligned and rounded by column, exact values kept for sorting."""

import math
from typing import Any

import pandas
from pandas.api import types

from workbench.report.numbers import UNDEFINED, column
from workbench.results_table import Table

MAX_ROWS = 2000  # in the page; the whole table is in its Parquet file


def table_view(table: Table, max_rows: int = MAX_ROWS) -> dict[str, Any]:
    """Prepare a table.

    Parameters
    ----------
    table : Table
        An index other than 0, 1, 2 … becomes columns of its own.
    max_rows : int
        More rows than this are left out.

    Returns
    -------
    dict
        "columns": name, unit, numeric; "rows": lists of (text, exact value or None); "n_rows" in the whole table.
    """
    frame = table.head(max_rows)
    if not isinstance(table.index, pandas.RangeIndex):
        frame = frame.reset_index(names=[str(name or "index") for name in table.index.names], allow_duplicates=True)
    cells = [_cells(frame.iloc[:, at]) for at in range(frame.shape[1])]
    return {
        "columns": [
            {"name": name, "unit": table.units.get(name, ""), "numeric": _numeric(frame.iloc[:, at])}
            for at, name in enumerate(frame.columns)
        ],
        "rows": list(zip(*cells, strict=True)),
        "n_rows": len(table),
    }


def _numeric(series: "pandas.Series[Any]") -> bool:
    return types.is_numeric_dtype(series.dtype) and not types.is_bool_dtype(series.dtype)


def _cells(series: "pandas.Series[Any]") -> list[tuple[str, str | None]]:
    values = [None if value is pandas.NA else value for value in series.astype(object).tolist()]
    if not _numeric(series):
        return [(_word(value), None) for value in values]
    write = column([value for value in values if value is not None])
    return [
        (UNDEFINED, "") if value is None or math.isnan(value) else (write(value), repr(float(value)))
        for value in values
    ]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNDEFINED
    return str(value)
