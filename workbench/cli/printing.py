"""What commands print: tables for people, JSON for machines."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer


def print_json(values: Any) -> None:
    """Print JSON on standard output."""
    typer.echo(json.dumps(values, indent=2, ensure_ascii=False, default=str))


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


class StandardError(logging.StreamHandler[Any]):
    """Writes to what is standard error at the moment, which a caller may have exchanged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


def log_to_terminal() -> None:
    """Show what the workbench logs on standard error, one plain line each."""
    log = logging.getLogger("workbench")
    if not any(isinstance(handler, StandardError) for handler in log.handlers):
        handler = StandardError()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
