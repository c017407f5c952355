"""A result's table: a pandas frame that knows what it shows."""

from collections.abc import Mapping
from typing import Any

import pandas


class Table(pandas.DataFrame):
    """A pandas frame with a description, and a unit for each column that has one; what is made of it is a plain frame.

    Attributes
    ----------
    description : str
        What a row is, and what to look for.
    units : dict of str to str
        By column.
    """

    _metadata = ["description", "units"]  # noqa: RUF012  # pandas' own way of naming attributes that are no columns

    def __init__(self, frame: Any = None, description: str = "", units: Mapping[str, str] | None = None) -> None:
        super().__init__(frame)  # type: ignore[call-arg]  # the stubs know pandas.DataFrame.__new__ only
        self.description = description
        self.units = dict(units or {})

    @property
    def _constructor(self) -> Any:
        return pandas.DataFrame

    def _repr_html_(self) -> str:
        from workbench.display import table_html

        return table_html(self)
