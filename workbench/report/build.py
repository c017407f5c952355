"""Building `report.html` from a run folder on disk."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from workbench.errors import UserError
from workbench.report.environment import render, static
from workbench.report.numbers import duration, interval, moment, number
from workbench.report.sections import rendering
from workbench.report.tables import table_view
from workbench.results import Figure, Metric
from workbench.results_files import load_shown, read_index

_MAX_SVG_BYTES = 600_000  # a scatter of many points is smaller, and faster to draw, as pixels
_SOFTWARE = {"interp-workbench": "workbench", "torch": "torch", "python": "Python"}  # the rest is in the manifest
_WIDE_PT = 560  # wider figures get the page's whole width


def write_report(run_folder: str | Path) -> Path:
    """Make `report.html`: one page, complete in itself, that asks nothing of the network.

    Parameters
    ----------
    run_folder : path
        Holds a saved result and, if it is a run's, `manifest.json`.

    Returns
    -------
    Path
        Of the report, which replaces an earlier one. Equal folders give equal bytes.

    Raises
    ------
    UserError
        Where there is no result, or a file is missing or damaged; names the file.
    """
    folder = Path(run_folder)
    path = folder / "report.html"
    part = folder / f".report.html.{os.getpid()}.part"
    try:
        part.write_text(report_html(folder), encoding="utf-8", errors="backslashreplace", newline="\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def report_html(folder: Path) -> str:
    """Return the report's HTML; parameters and errors are those of `write_report`."""
    result, index, manifest = load_shown(folder), read_index(folder), _read_manifest(folder)
    script = static("report.js")
    name = folder.resolve().name.removesuffix(".part")  # a report is written before its run gets its final name
    return render(
        "report.html.jinja",
        title=f"{manifest.get('plugin') or 'result'} · {name}",
        plugin=manifest.get("plugin") or name,
        folder=name,
        help=manifest.get("help") or "",
        facts=list(_facts(manifest)),
        metrics=[{"name": name, **metric_view(metric)} for name, metric in result.metrics.items()],
        figures=[{"name": name, **figure_view(figure)} for name, figure in result.figures.items()],
        sections=[
            {"name": name, "description": section.description, "html": _section_html(name, section.kind, section.data)}
            for name, section in result.sections.items()
        ],
        tables=[
            {"name": name, "description": table.description, **table_view(table)}
            for name, table in result.tables.items()
        ],
        arrays=index["arrays"],
        weights=index["weights"],
        files=index["files"],
        config=list(_config(manifest)),
        manifest=manifest,
        style=Markup(static("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def metric_view(metric: Metric) -> dict[str, Any]:
    """Prepare a metric for a template: value and interval as text, rounded to the same decimals."""
    if metric.lo is None or metric.hi is None:
        return {"value": number(metric.value), "ends": None, "unit": metric.unit, "description": metric.description}
    value, lo, hi = interval(metric.value, metric.lo, metric.hi)
    return {"value": value, "ends": (lo, hi), "unit": metric.unit, "description": metric.description}


def figure_view(figure: Figure) -> dict[str, Any]:
    """Prepare a figure for a template: a data URI, its size in CSS pixels, whether its colours may be turned.

    An image that stays an image: scripts in an SVG do not run in it, and the ids of two figures do not meet.
    """
    svg = figure.svg()
    width, height = (float(size) for size in re.findall(rb'(?:width|height)="([\d.]+)pt"', svg[:2000])[:2])
    kind, data = ("svg+xml", svg) if len(svg) <= _MAX_SVG_BYTES else ("png", figure.png())
    return {
        "uri": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
        "width": round(width * 4 / 3),
        "height": round(height * 4 / 3),
        "wide": width > _WIDE_PT,
        "pictorial": b"<image" in svg,  # pictures keep their colours in the dark; drawings may be turned
        "description": figure.description,
    }


def _section_html(name: str, kind: str, data: Any) -> Markup:
    shown = rendering(kind, data)
    return Markup(render(shown.template, name=name, **shown.values))


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(manifest, dict):
        raise UserError(f"{path} is damaged: it holds no keys")
    return manifest


def _facts(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield what the header says: name, value, and a detail for the curious."""
    for key in ("subject", "store", "data", "dictionary"):
        if named := manifest.get(key):
            named = named if isinstance(named, dict) else {"address": named}
            value = named.get("address") or named.get("path") or named.get("folder") or ""
            yield key, str(value), f"fingerprint {named['fingerprint']}" if named.get("fingerprint") else ""
    if manifest.get("seed") is not None:
        yield "seed", str(manifest["seed"]), ""
    if device := manifest.get("device"):
        threads = manifest.get("threads")
        yield "device", f"{device}, {threads} thread{'s'[: threads != 1]}" if threads else str(device), ""
    if started := manifest.get("started"):
        yield "started", moment(str(started)), ""
    if (seconds := manifest.get("seconds")) is not None:
        yield "took", duration(seconds), ""
    if identity := manifest.get("identity"):
        yield "identity", str(identity)[:12], str(identity)
    versions = manifest.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    named = {str(manifest.get("plugin", "plugin")): manifest.get("plugin_version")}
    named |= {package: versions.get(key) for key, package in _SOFTWARE.items()}
    if software := ", ".join(f"{package} {version}" for package, version in named.items() if version):
        yield "software", software, ", ".join(f"{package} {version}" for package, version in versions.items())


def _config(manifest: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    options = manifest.get("options") or {}
    for key, value in _flat(manifest.get("config") or {}):
        about = options.get(key) or {}
        yield {
            "key": key,
            "value": value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),  # as --set takes it
            "unit": about.get("unit") or "",
            "help": about.get("help") or "",
        }


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
