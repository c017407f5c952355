"""What a report asks of its reader's browser, read with the standard library's parser."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

from workbench.results import Result, Section
from workbench.results_table import Table

HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&lt;"
_LOADS = {"src", "srcset", "data", "poster", "action", "formaction"}  # attributes whose address is fetched
_INSIDE = ("data:", "#", "about:")


class Page(HTMLParser):
    """A page, read.

    Attributes
    ----------
    outside : list of str
        Addresses that it would fetch.
    scripts : int
        Number of its scripts.
    handlers : list of str
        Attributes that hold code (``onclick`` …).
    text : str
        All that is shown.
    """

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.outside: list[str] = []
        self.scripts = 0
        self.handlers: list[str] = []
        self.text = ""
        self.within: str | None = None  # a script or style sheet

    @classmethod
    def of(cls, text: str) -> Page:
        """Read a page."""
        page = cls()
        page.feed(text)
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element fetches or runs."""
        self.scripts += tag == "script"
        self.within = tag if tag in ("script", "style") else self.within
        for name, value in attrs:
            fetched = name in _LOADS or (name == "href" and tag not in ("a", "area"))
            if fetched and value and not value.startswith(_INSIDE):
                self.outside.append(f"{tag} {name}={value[:80]}")
            if name == "style":
                self.note_style(value or "")
            if name.startswith("on"):
                self.handlers.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag: str) -> None:
        """Leave scripts and style sheets."""
        if tag == self.within:
            self.within = None

    def handle_data(self, data: str) -> None:
        """Collect what is shown, and what style sheets fetch."""
        if self.within is None:
            self.text += data
        elif self.within == "style":
            self.note_style(data)

    def note_style(self, style: str) -> None:
        """Note what a style sheet fetches."""
        self.outside += [f"@import {name}" for name in re.findall(r"@import\s+(\S+)", style)]
        fetched = re.findall(r"url\(\s*[\"']?([^\"')]+)", style)
        self.outside += [f"url({address[:80]})" for address in fetched if not address.startswith(_INSIDE)]


def hostile(result: Result) -> Result:
    """Return a copy of a result whose every text ends in HTML that would run code."""
    made = Result(weights=result.weights, files=result.files)
    for name, metric in result.metrics.items():
        made.metrics[name] = replace(metric, description=metric.description + HOSTILE, unit=metric.unit + HOSTILE)
    for name, array in result.arrays.items():
        made.arrays[name] = array.assign_attrs(description=array.attrs["description"] + HOSTILE)
    for name, figure in result.figures.items():
        made.figures[name] = replace(figure, description=figure.description + HOSTILE)
    for name, table in result.tables.items():
        frame = table.copy()
        for column in frame.columns:
            if frame[column].dtype.kind == "O" or str(frame[column].dtype).startswith("str"):
                texts = [value + HOSTILE if isinstance(value, str) else value for value in frame[column]]
                frame[column] = texts
        frame = frame.rename(columns={column: column + HOSTILE for column in frame.columns})
        made.tables[name] = Table(frame, table.description + HOSTILE)
    for name, section in result.sections.items():
        made.sections[name] = Section(section.kind, _hostile(section.data), section.description + HOSTILE)
    return made


def _hostile(data: Any) -> Any:
    if isinstance(data, str):
        return data + HOSTILE
    if isinstance(data, list):
        return [_hostile(each) for each in data]
    if isinstance(data, dict):
        return {key: _hostile(value) for key, value in data.items()}
    return data
