"""What a label is, found out from its values: yes/no, categories or numbers."""

from __future__ import annotations

import math
import re
from typing import cast, get_args

from workbench.datasets.protocol import Kind, LabelSpec, Level
from workbench.errors import UserError

Scalar = bool | int | float | str

YES = frozenset({"yes", "true"})
NO = frozenset({"no", "false"})


class LabelValues:
    """The values of one label: seen one by one, then described by a `LabelSpec` and encoded as numbers.

    Parameters
    ----------
    header : str
        ``[GROUP/]NAME[:KIND[=PERIOD]]``: ``sentiment``, ``scopes/in_string``, ``rank:ordered``, ``hour:cyclic=24``.
        Without a kind, the values decide: true/false, yes/no and 0/1 are binary, other numbers ``number``, other text
        ``categories`` (in alphabetical order).
    level : "row", "sequence" or "document"
        What carries a value.
    group : str
        If the header names none.
    where : str
        File and line, for messages.
    """

    def __init__(self, header: str, level: Level, group: str, where: str) -> None:
        path, _, kind = header.strip().rpartition(":")
        kind, _, period = kind.partition("=")
        if kind not in get_args(Kind) or not path:
            path, kind, period = header.strip(), "", ""
        if (kind == "cyclic") != bool(period) or (period and not re.fullmatch(r"[1-9][0-9]*(\.[0-9]+)?", period)):
            raise UserError(f"{where}: label {header!r}: a cyclic label, and no other, has a period: 'hour:cyclic=24'")
        parts = path.split("/")
        if len(parts) > 2 or not all(parts) or (len(parts) == 2 and not re.fullmatch(r"\w[\w.-]*", parts[0])):
            raise UserError(
                f"{where}: label {header!r} must be called NAME or GROUP/NAME; "
                "a group has letters, digits, '_', '-' and '.' only"
            )
        self.group, self.name = parts if len(parts) == 2 else (group, parts[0])
        self.level: Level = level
        self.kind = cast("Kind | None", kind or None)
        self.period = float(period) if period else None
        self._words: set[str] = set()
        self._has_numbers = False
        self._yes_no = True

    def see(self, value: Scalar, where: str) -> None:
        """Take note of a value.

        Raises
        ------
        UserError
            If it does not go with those before it, or with the kind that the header names; `where` opens the message.
        """
        if isinstance(value, str):
            if self._has_numbers:
                raise UserError(f"{where}: label {self.name!r} is the text {value!r} here and a number elsewhere")
            if self.kind in {"ordered", "number", "cyclic"}:
                raise UserError(f"{where}: label {self.name!r} is {self.kind}, so {value!r} must be a number")
            self._words.add(value)
            self._yes_no &= value.lower() in YES | NO
        else:
            if self._words:
                raise UserError(f"{where}: label {self.name!r} is {value!r} here and text elsewhere")
            if self.kind == "categories":
                raise UserError(f"{where}: label {self.name!r} has categories, so {value!r} must be text")
            if not math.isfinite(value):
                raise UserError(f"{where}: label {self.name!r} is {value}; leave it out where it is undefined")
            if self.kind == "ordered" and value != int(value):
                raise UserError(f"{where}: label {self.name!r} is ordered, so {value} must be a whole number")
            self._has_numbers = True
            self._yes_no &= value in (0, 1)
        if self.kind == "binary" and not self._yes_no:
            raise UserError(f"{where}: label {self.name!r} is binary, so {value!r} must be 0, 1, yes, no, true, false")

    def spec(self) -> LabelSpec:
        """Describe the label, once all values have been seen."""
        kind = self.kind or ("binary" if self._yes_no else "number" if self._has_numbers else "categories")
        categories = tuple(sorted(self._words)) if kind == "categories" else ()
        return LabelSpec(self.name, self.group, self.level, kind, categories, self.period)


def encode(spec: LabelSpec, value: Scalar) -> float:
    """Return a value as the number that stands for it: 0 or 1, the index of its category, itself."""
    if not isinstance(value, str):
        return float(value)
    if spec.kind == "binary":
        return float(value.lower() in YES)
    return float(spec.categories.index(value))
