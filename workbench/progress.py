"""Progress of long work: a bar with rate and time left on a terminal or in a notebook, else a line now and then."""

from __future__ import annotations

import html
import importlib
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 15.0
SECONDS_BETWEEN_DRAWINGS = 0.25  # in a notebook, where each one is a message to the browser
drawn = True  # False in a process that shares its terminal with others: the workers of a batch


class RateColumn(ProgressColumn):
    """How many units are done in a second."""

    def render(self, task: Task) -> Text:
        """Return the rate with its unit."""
        speed = task.finished_speed or task.speed
        return Text(
            ""
            if not speed
            else f"{speed:,.0f} {task.fields['unit']}/s"
            if speed >= 10
            else f"{speed:.2f} {task.fields['unit']}/s"
        )


class Ticker:
    """Counts the units done; drawn by a rich bar, shown in a notebook's output, or reported to a log."""

    def __init__(self, total: int | None, unit: str, description: str, log: logging.Logger, done: int) -> None:
        self.total, self.unit, self.description, self.log = total, unit, description, log
        self.done = self.done_before = done
        self.note = ""
        self.bar: Progress | None = None
        self.output: Any = None  # IPython's handle of what is displayed
        self.started = self.last_line = time.monotonic()

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        self.show()

    def update(self, **values: float | str) -> None:
        """Show a few current values beside the bar."""
        self.note = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        self.show()

    def show(self) -> None:
        """Redraw the bar, or write a line if the last one is long ago."""
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.done, note=self.note)
            return
        now = time.monotonic()
        if self.output is not None:
            if now - self.last_line >= SECONDS_BETWEEN_DRAWINGS:
                self.last_line = now
                self.draw()
            return
        if now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            self.log.info(self.line(now - self.started))

    def draw(self) -> None:
        """Replace what the notebook shows: a bar that the browser draws, and the line."""
        text = html.escape(self.line(time.monotonic() - self.started))
        bar = f'<progress value="{self.done}" max="{self.total}"></progress> ' if self.total else ""
        self.output.update({"text/html": f"<div>{bar}<small>{text}</small></div>", "text/plain": text}, raw=True)

    def line(self, seconds: float) -> str:
        """Return progress as one line of text."""
        rate = (self.done - self.done_before) / max(seconds, 1e-9)
        text = f"{self.description}: {self.done:,} {self.unit}, {rate:,.1f}/s"
        if self.total:
            left = max(self.total - self.done, 0) / max(rate, 1e-9)
            text += f", {100 * self.done / self.total:.0f} % done, {left:.0f} s left"
        return f"{text}  {self.note}".rstrip()


@contextmanager
def progress(
    total: int | None, unit: str = "rows", description: str = "", log: logging.Logger | None = None, done: int = 0
) -> Iterator[Ticker]:
    """Show the progress of a loop.

    Parameters
    ----------
    total : int or None
        Units in all; None if unknown.
    unit, description : str
        What is counted, and what is being done.
    log : logging.Logger, optional
        Where lines go when there is no terminal.
    done : int
        Units done by an earlier, interrupted run.

    Yields
    ------
    Ticker
        With `advance(n)` and `update(loss=…)`.
    """
    ticker = Ticker(total, unit, description, log or logging.getLogger("workbench"), done)
    console = Console(file=sys.stderr)
    if drawn and console.is_jupyter:
        display = importlib.import_module("IPython.display").display  # no dependency of ours: a notebook brings it
        ticker.output = display({"text/plain": description}, raw=True, display_id=True)
        ticker.draw()
        try:
            yield ticker
        finally:
            ticker.draw()
        return
    if not drawn or not console.is_terminal:
        yield ticker
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}" if total is not None else "{task.completed:,.0f}"),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        bar.add_task(description, total=total, completed=done, unit=unit, note="")
        ticker.bar = bar
        yield ticker
