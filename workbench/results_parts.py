"""The kinds of things that a result holds."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import matplotlib.figure
    import torch

T = TypeVar("T")


class Parts(dict[str, T]):
    """Parts of one kind by name, which show themselves in a notebook."""

    def _repr_html_(self) -> str:
        from workbench.display import parts_html

        return parts_html(self)


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes
    ----------
    value : int or float
        May be NaN where the number is not defined.
    unit : str
        "" for a pure number, "nats", "%", "rows" …
    description : str
        One sentence for the reader of the report.
    lo, hi : float, optional
        Ends of the interval, in the unit of `value`; both or neither. The description says which interval.
    """

    value: int | float
    unit: str
    description: str
    lo: float | None = None
    hi: float | None = None

    def _repr_html_(self) -> str:
        from workbench.display import metric_html

        return metric_html(self)


@dataclass(frozen=True)
class Figure:
    """A figure and its caption; whatever a matplotlib figure can do, this can (``result.figures["curve"].axes``).

    Attributes
    ----------
    figure : matplotlib.figure.Figure or None
        None in a loaded result: drawings cannot be restored from disk, their images can.
    description : str
        The caption.
    images : mapping of str to bytes
        `svg` and `png` as they were stored; empty while `figure` is there.
    """

    figure: "matplotlib.figure.Figure | None"
    description: str
    images: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    def svg(self) -> bytes:
        """Return the figure as an SVG file: the same bytes for the same figure."""
        return self._image("svg")

    def png(self) -> bytes:
        """Return the figure as a PNG file: the same bytes for the same figure."""
        return self._image("png")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.figure is None:
            raise AttributeError(
                f"{name}: a loaded result has figures as images, svg() and png(); draw from its tables"
            )
        return getattr(self.figure, name)

    def _image(self, form: str) -> bytes:
        if self.figure is None:
            return self.images[form]
        import matplotlib

        # no date, no version, and ids that do not depend on the process: equal runs write equal files
        metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        file = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "workbench", "svg.fonttype": "path"}):
            self.figure.savefig(file, format=form, dpi=150, bbox_inches="tight", metadata=metadata)
        return file.getvalue()

    def _repr_html_(self) -> str:
        from workbench.display import figure_html

        return figure_html(self)


class Weights(dict[str, "torch.Tensor"]):
    """Named tensors of one model, with a description and what else one must know to use them (plain JSON values)."""

    def __init__(
        self,
        tensors: "Mapping[str, torch.Tensor]",
        description: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(tensors)
        self.description = description
        self.config = dict(config or {})

    def __repr__(self) -> str:
        shapes = (f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in self.items())
        return f"<Weights {', '.join(shapes)}; {self.description!r}>"


@dataclass(frozen=True)
class File:
    """A file in another program's format, with a description of what it holds."""

    data: bytes = field(repr=False)
    description: str


@dataclass(frozen=True)
class Section:
    """A component of the report: data for one of the templates that the report package knows.

    Attributes
    ----------
    kind : str
        Which template: `workbench.report.KINDS`. Another kind is shown as plain data.
    data : JSON value
        What the template shows. Text in it is escaped.
    description : str
        One sentence above it.
    """

    kind: str
    data: Any = field(repr=False)
    description: str = ""
