"""Labels as they are written in JSON: a value for the document, or spans of its characters.

A label's key is ``[GROUP/]NAME[:KIND[=PERIOD]]`` (see `workbench.datasets.kinds.LabelValues`); its value is one of

- a plain value: a label of the document;
- a list of spans ``[start, end]`` or ``[start, end, value]``, counted in characters of the text, end excluded: a label
  of rows. Without a value a span means true. An empty list says that no token of this document carries the label;
- ``{"spans": [...], "every": true, "background": 0}``: the same, on every token that a span touches instead of the one
  with its first non-space character, or with another value where there is no span. Without ``background`` a binary
  label is 0 there, and any other is undefined;
- null, or no such key: undefined in this document.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from workbench.datasets.kinds import LabelValues, Scalar, encode
from workbench.datasets.protocol import LabelSpec, Level, Span, SpanLabel
from workbench.errors import UserError

SPAN_KEYS = {"spans", "every", "background"}


class JsonLabels:
    """The labels of many documents: seen one document after the other, then described, then read.

    Parameters
    ----------
    group : str
        Group of labels whose key names none.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self._values: dict[str, LabelValues] = {}
        self.specs: dict[str, LabelSpec] = {}

    def see(self, labels: Any, n_characters: int | None, where: str) -> None:
        """Check the labels of one document.

        Parameters
        ----------
        labels : mapping or None
            As JSON gave them.
        n_characters : int or None
            Length of the text; None if it is not at hand.
        where : str
            File and line; opens every message.
        """
        if labels is None:
            return
        if not isinstance(labels, dict):
            raise UserError(f"{where}: 'labels' is {labels!r}, where an object {{name: value}} is wanted")
        for key, value in labels.items():
            if value is None:
                continue
            level: Level = "document" if isinstance(value, Scalar) else "row"
            if key not in self._values:
                self._values[key] = LabelValues(key, level, self.group, where)
            seen = self._values[key]
            if seen.level != level:
                raise UserError(f"{where}: label {key!r} is on the {level} here and on the {seen.level} elsewhere")
            if isinstance(value, Scalar):
                seen.see(value, where)
                continue
            for start, end, inner in spans_of(key, value, where):
                if not 0 <= start <= end or (n_characters is not None and end > n_characters):
                    room = "" if n_characters is None else f" of a text of {n_characters} characters"
                    raise UserError(f"{where}: label {key!r} has a span from {start} to {end}{room}")
                seen.see(inner, where)
            background = value.get("background") if isinstance(value, dict) else None
            if background is not None:
                seen.see(background, where)

    def finish(self) -> tuple[LabelSpec, ...]:
        """Describe the labels, once all documents have been seen; two keys for one name are an error."""
        self.specs = {key: values.spec() for key, values in self._values.items()}
        names = [spec.name for spec in self.specs.values()]
        for name in names:
            if names.count(name) > 1:
                keys = " and ".join(repr(key) for key, spec in self.specs.items() if spec.name == name)
                raise UserError(f"label {name!r} is written in two ways, {keys}: write it in one")
        return tuple(self.specs.values())

    def read(self, labels: Mapping[str, Any]) -> dict[str, SpanLabel | float | None]:
        """Return the labels of one document in the form that `Dataset.labels` gives."""
        return {spec.name: self._read_one(key, spec, labels.get(key)) for key, spec in self.specs.items()}

    def _read_one(self, key: str, spec: LabelSpec, value: Any) -> SpanLabel | float | None:
        if value is None:
            return None
        if isinstance(value, Scalar):
            return encode(spec, value)
        form = value if isinstance(value, dict) else {}
        every, background = form.get("every", False), form.get("background")
        default = 0.0 if spec.kind == "binary" else None
        spans = [Span(start, end, encode(spec, inner), every) for start, end, inner in spans_of(key, value, key)]
        return SpanLabel(spans, default if background is None else encode(spec, background))


def spans_of(key: str, value: Any, where: str) -> Iterator[tuple[int, int, Scalar]]:
    """Go through the spans of a label, refusing any other form."""
    problem = None
    if isinstance(value, dict):
        unknown = sorted(value.keys() - SPAN_KEYS)
        if unknown or "spans" not in value:
            problem = f"has {', '.join(value)}, where spans and optionally every, background are wanted"
        elif not isinstance(value.get("every", False), bool):
            problem = f"has every = {value['every']!r}, where true or false is wanted"
        elif value.get("background") is not None and not isinstance(value["background"], Scalar):
            problem = f"has background = {value['background']!r}, where a plain value is wanted"
        value = value.get("spans")
    if problem is None and not isinstance(value, list):
        problem = f"is {value!r}"
    if problem is None:
        for span in value:
            ends = span[:2] if isinstance(span, list) and len(span) in (2, 3) else []
            if [type(end) for end in ends] != [int, int] or not isinstance(span[-1], Scalar):
                problem = f"has the span {span!r}"
                break
            yield ends[0], ends[1], span[2] if len(span) == 3 else True
    if problem is not None:
        raise UserError(
            f"{where}: label {key!r} {problem}; spans are [[start, end], …] or [[start, end, value], …], "
            "counted in characters of the text"
        )
