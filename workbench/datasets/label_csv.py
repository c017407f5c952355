"""Labels in a CSV file: the first column says of what, each other column is a label."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.datasets.kinds import LabelValues, Scalar, encode
from workbench.datasets.protocol import LabelSpec, Level
from workbench.errors import UserError


@dataclass(frozen=True)
class LabelCsv:
    """A file that was read.

    Attributes
    ----------
    lines : list of int
        Line number of each entry, for messages.
    keys : list of str
        First cell of each; unique.
    columns : list of (LabelSpec, list of float or None)
        Each label, and its value for each entry; None where the cell is empty.
    """

    lines: list[int]
    keys: list[str]
    columns: list[tuple[LabelSpec, list[float | None]]]


def read_label_csv(file: Path, level: Level, group: str) -> LabelCsv:
    """Read a CSV file of labels.

    Parameters
    ----------
    file : Path
        UTF-8; its first line names the columns (see `LabelValues` for names and kinds).
    level : "row", "sequence" or "document"
        What an entry is about.
    group : str
        Of labels whose column names none.

    Raises
    ------
    UserError
        If no column is a label, for a line of another length, a first cell or a column that comes twice, a column
        without a value, or a value that does not fit; the message names file and line.
    """
    titles, entries = read_csv(file)
    if len(titles) == 1:
        raise UserError(f"{file}, line 1: there is no column but {titles[0]!r}; each further column is a label")
    lines: dict[str, int] = {}
    for line, cells in entries:
        key = cells[0].strip()
        if key in lines:
            raise UserError(f"{file}, line {line}: {key!r} was labelled in line {lines[key]}")
        lines[key] = line
    columns: list[tuple[LabelSpec, list[float | None]]] = []
    for place, title in enumerate(titles[1:], start=1):
        values = LabelValues(title, level, group, f"{file}, line 1")
        parsed = parse_cells([cells[place] for _, cells in entries])
        for (line, _), value in zip(entries, parsed, strict=True):
            if value is not None:
                values.see(value, f"{file}, line {line}")
        if entries and all(value is None for value in parsed):
            raise UserError(f"{file}: the column {title!r} has no value in any line")
        spec = values.spec()
        if spec.name in {other.name for other, _ in columns}:
            raise UserError(f"{file}, line 1: two columns are called {spec.name!r}")
        columns.append((spec, [None if value is None else encode(spec, value) for value in parsed]))
    return LabelCsv(list(lines.values()), list(lines), columns)


def read_csv(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a CSV file: its headers, and each further line with its number; empty lines are passed over."""
    with file.open(encoding="utf-8-sig", newline="") as content:
        reader = csv.reader(content)
        try:
            lines = [(reader.line_num, cells) for cells in reader if cells]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{file}, after line {reader.line_num}: not a CSV file in UTF-8: {error}") from None
    if not lines:
        raise UserError(f"{file}: empty; its first line must name the columns")
    (_, header), *entries = lines
    if len(header) == 1 and ";" in header[0]:
        raise UserError(f"{file}, line 1: {header[0]!r} is one column: separate columns by commas, not by semicolons")
    for line, cells in entries:
        if len(cells) != len(header):
            raise UserError(f"{file}, line {line}: {len(cells)} cells, where the first line has {len(header)}")
    return [title.strip() for title in header], entries


def parse_cells(cells: Sequence[str]) -> list[Scalar | None]:
    """Read a column: numbers if every cell is one, else text; empty cells are None."""
    stripped = [cell.strip() for cell in cells]
    try:
        return [float(cell) if cell else None for cell in stripped]
    except ValueError:
        return [cell or None for cell in stripped]
