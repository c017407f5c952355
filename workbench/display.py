"""How objects look in a notebook: compact HTML that takes the notebook's own colours, light or dark.

Results and runs call these functions from `_repr_html_`. Stores, subject models and dictionaries know nothing of it:
their display is registered with IPython (`register`). Nothing heavy is imported before something is shown.
"""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.cache import Store
    from workbench.dictionary import Dictionary
    from workbench.generation import Generation
    from workbench.results import Figure, Metric, Result
    from workbench.results_parts import Parts
    from workbench.results_table import Table
    from workbench.runs import Run
    from workbench.subjects.protocol import Subject

_TABLE_ROWS = 8
_FIGURES = 6


def metric_html(metric: "Metric") -> str:
    """Return a metric's HTML: value, unit, interval, description."""
    return _fragment(metrics=[_metric("", metric)], facts=[("", metric.description)])


def table_html(table: "Table") -> str:
    """Return the HTML of a table's first rows."""
    return _fragment(tables=[_table("", table, is_open=True)])


def figure_html(figure: "Figure") -> str:
    """Return a figure's HTML: the image and its caption."""
    return _fragment(figures=[_figure("", figure)])


def parts_html(parts: "Parts[Any]") -> str:
    """Return the HTML of a result's metrics, of its tables or of its figures."""
    from workbench.results_parts import Figure, Metric
    from workbench.results_table import Table

    return _fragment(
        metrics=[_metric(name, part) for name, part in parts.items() if isinstance(part, Metric)],
        figures=[_figure(name, part) for name, part in parts.items() if isinstance(part, Figure)],
        tables=[_table(name, part) for name, part in parts.items() if isinstance(part, Table)],
        facts=[] if parts else [("", "none")],
    )


def result_html(result: "Result") -> str:
    """Return a result's HTML: metrics, figures, the first rows of its tables, what else there is, the report."""
    others = [
        ("arrays", ", ".join(f"{name} {list(array.shape)}" for name, array in result.arrays.items())),
        ("weights", ", ".join(f"{name} ({', '.join(tensors)})" for name, tensors in result.weights.items())),
        ("files", ", ".join(result.files)),
        ("sections", ", ".join(result.sections)),
        ("figures not shown", ", ".join(list(result.figures)[_FIGURES:])),
    ]
    report = result.folder / "report.html" if result.folder else None
    return _fragment(
        title="Result",
        subtitle=str(result.folder or ""),
        metrics=[_metric(name, metric) for name, metric in result.metrics.items()],
        figures=[_figure(name, figure) for name, figure in list(result.figures.items())[:_FIGURES]],
        tables=[_table(name, table) for name, table in result.tables.items()],
        others=[(name, value) for name, value in others if value],
        report=report.as_posix() if report and report.is_file() else None,
    )


def run_html(run: "Run") -> str:
    """Return a run's HTML: what ran, on what, and its result."""
    manifest = run.manifest
    facts = []
    for key in ("subject", "store", "data", "dictionary"):
        named = manifest.get(key)
        if named:
            facts.append((key, str((named.get("address") or named.get("path")) if isinstance(named, dict) else named)))
    facts += [(key, str(manifest[key])) for key in ("seed", "device", "started", "identity") if key in manifest]
    head = _fragment(title=str(manifest.get("plugin", "Run")), subtitle=str(manifest.get("help", "")), facts=facts)
    return head + result_html(run.result)


def store_html(store: "Store") -> str:
    """Return an activation store's HTML: rows, origin, hook points, labels."""
    import pandas

    from workbench.provenance import recorded_dataset, recorded_model

    addresses = {"model": recorded_model(store).address, "dataset": recorded_dataset(store).address}
    rows = f"{store.n_rows:,}"
    if not store.finished:
        rows += f" of {store.n_rows_planned:,} so far: not finished"
    specs = {name: (_axes(each.axes, each.shape), each.dtype, each.unit) for name, each in store.hook_points.items()}
    points = pandas.DataFrame(
        [(name, *spec) for name, spec in folded_hook_points(specs).items()],
        columns=["hook point", "a row", "dtype", "unit"],
    )
    labels = pandas.DataFrame(
        [
            {"label": name, "group": label.group, "level": label.level, "kind": label.kind, "unit": label.unit}
            for name, label in store.labels.items()
        ]
    )
    return _fragment(
        title="Activation store",
        subtitle=str(store.folder),
        facts=[("rows", rows), ("subject model", addresses["model"]), ("dataset", addresses["dataset"])],
        tables=[
            _frame("hook points", points, n=len(store.hook_points), is_open=len(points) <= _TABLE_ROWS),
            _frame("labels", labels, n=len(labels)),
        ],
    )


def subject_html(subject: "Subject") -> str:
    """Return a subject model's HTML: sizes, device, and its hook points with the layers folded."""
    import pandas

    sizes = {"layers": subject.n_layers, "width": subject.d_model, "heads": subject.n_heads, "MLP": subject.d_mlp}
    folded = folded_hook_points({name: point.axes for name, point in subject.hook_points.items()})
    points = pandas.DataFrame([{"hook point": name, "axes": ", ".join(axes)} for name, axes in folded.items()])
    return _fragment(
        title="Subject model",
        subtitle=subject.address,
        facts=[
            ("modality", subject.modality),
            *((name, str(size)) for name, size in sizes.items()),
            ("context", str(subject.n_context)),
            ("device", str(subject.device)),
            ("dtype", str(subject.dtype).removeprefix("torch.")),
        ],
        tables=[_frame("hook points", points, n=len(subject.hook_points), max_rows=len(points))],
    )


def dictionary_html(dictionary: "Dictionary") -> str:
    """Return a dictionary's HTML: where it reads and writes, latents, activation function."""
    latents, width = dictionary.W_enc.shape
    active = f"{dictionary.activation}, k = {dictionary.k}" if dictionary.k else dictionary.activation
    return _fragment(
        title="Dictionary",
        subtitle=dictionary.address,
        facts=[
            ("reads", dictionary.hook_in),
            ("reconstructs", dictionary.hook_out),
            ("latents", f"{latents:,}"),
            ("width", str(width)),
            ("activation", active),
            ("subject model", dictionary.subject_address or dictionary.subject_fingerprint or "unknown"),
        ],
    )


def generation_html(generation: "Generation") -> str:
    """Return the HTML of a continuation: the prompt, what was written, and how likely each token was."""
    import pandas

    chances = [f"{math.exp(each):.3f}" for each in generation.log_probabilities]
    pieces = pandas.DataFrame({"token": [repr(each)[1:-1] for each in generation.pieces], "probability": chances})
    return _fragment(
        title="Generation",
        facts=[("prompt", generation.prompt), ("written", generation.text)],
        tables=[_frame("tokens", pieces, n=len(pieces))],
    )


def folded_hook_points(points: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Write the hook points of all layers as one where nothing but the layer differs.

    Parameters
    ----------
    points : mapping of str to sequence of str
        Axes by name, or whatever else is to be the same.

    Returns
    -------
    dict

    Examples
    --------
    >>> folded_hook_points({"blocks.0.hook_resid_pre": ["pos"], "blocks.1.hook_resid_pre": ["pos"]})
    {'blocks.0…1.hook_resid_pre': ('pos',)}
    """
    layers: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for name, axes in points.items():
        layer = re.match(r"blocks\.(\d+)\.", name)
        pattern = f"blocks.*.{name[layer.end() :]}" if layer else name
        layers.setdefault((pattern, tuple(axes)), []).extend([int(layer[1])] if layer else [])
    folded = {}
    for (pattern, axes), found in layers.items():
        spans = [] if not found else _spans(sorted(found))
        folded[pattern.replace("*", ",".join(spans), 1) if found else pattern] = axes
    return folded


def register() -> None:
    """Tell a running IPython how stores, subject models and dictionaries look; without IPython this does nothing.

    By name, so that nothing is imported for it.
    """
    ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if ipython is not None:
        formatter = ipython.display_formatter.formatters["text/html"]
        formatter.for_type_by_name("workbench.cache.reader", "Store", store_html)
        formatter.for_type_by_name("workbench.subjects.protocol", "Subject", subject_html)
        formatter.for_type_by_name("workbench.dictionary", "Dictionary", dictionary_html)


def _fragment(**values: Any) -> str:
    from markupsafe import Markup

    from workbench.report.environment import render, static

    empty: dict[str, Any] = {"title": "", "subtitle": "", "report": None}
    empty |= {part: [] for part in ("facts", "metrics", "figures", "tables", "others")}
    return render("fragment.html.jinja", style=Markup(static("fragment.css")), **(empty | values))


def _metric(name: str, metric: "Metric") -> dict[str, Any]:
    from workbench.report.build import metric_view

    return {"name": name, **metric_view(metric)}


def _figure(name: str, figure: "Figure") -> dict[str, Any]:
    from workbench.report.build import figure_view

    return {"name": name, **figure_view(figure)}


def _table(name: str, table: "Table", *, is_open: bool = False, max_rows: int = _TABLE_ROWS) -> dict[str, Any]:
    from workbench.report.tables import table_view

    return {"name": name, "description": table.description, "open": is_open, **table_view(table, max_rows)}


def _frame(name: str, frame: Any, *, n: int, is_open: bool = False, max_rows: int = 40) -> dict[str, Any]:
    from workbench.results_table import Table

    return _table(name, Table(frame, f"({n})"), is_open=is_open, max_rows=max_rows)


def _axes(axes: Sequence[str], shape: Sequence[int]) -> str:
    return " × ".join(f"{axis} {size}" for axis, size in zip(axes, shape, strict=True)) or "one number"


def _spans(layers: Sequence[int]) -> list[str]:
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return [str(first) if first == last else f"{first}…{last}" for first, last in spans]
