"""A result on disk: open formats, equal bytes for equal results, each file in place whole or not at all.

metrics.json             name -> value, unit, description, lo, hi; "nan", "inf" and "-inf" as text
result.json              what there is besides, in order, with descriptions and units
tables/NAME.parquet      units also in the columns' metadata
arrays/NAME.h5           /values, its axes named and scaled by /coordinates/…
weights/NAME.safetensors
figures/NAME.svg, .png
sections/NAME.json       the data of a report section
files/NAME               for other programs, as they are
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import xarray

from workbench.errors import UserError
from workbench.results import Figure, File, Metric, Result, Section, Weights
from workbench.results_table import Table

SCHEMA = 1
_SUFFIXES = {
    "tables": (".parquet",),
    "arrays": (".h5",),
    "weights": (".safetensors",),
    "figures": (".svg", ".png"),
    "sections": (".json",),
}


def save_result(result: Result, folder: Path, *, drawn: bool = True) -> None:
    """Write a result into a run folder; see the module for the layout.

    Parameters
    ----------
    result : Result
        Unchanged.
    folder : Path
        Made if missing. Files left by an earlier result there are replaced or removed; others are not touched.
    drawn : bool
        False leaves the figures out; `result.json` names them under "undrawn".

    Raises
    ------
    ValueError
        For a table with a column that Parquet cannot hold; names the table.
    """
    for name, table in result.tables.items():
        _write_table(folder / "tables" / f"{name}.parquet", name, table)
    for name, array in result.arrays.items():
        _write_array(folder / "arrays" / f"{name}.h5", array)
    for name, weights in result.weights.items():
        _write_weights(folder / "weights" / f"{name}.safetensors", weights)
    figures = result.figures if drawn else {}
    _write_figures(folder, figures)
    for name, section in result.sections.items():
        _write_json(folder / "sections" / f"{name}.json", section.data, indent=None)
    for name, file in result.files.items():
        _write_bytes(folder / "files" / name, file.data)
    _write_json(folder / "metrics.json", {name: _metric_to_json(metric) for name, metric in result.metrics.items()})
    undrawn = [name for name in result.figures if name not in figures]
    index = {**_index(result), **({"figures": {}, "undrawn": undrawn} if undrawn else {})}
    _write_json(folder / "result.json", index)
    _remove_others(result, folder)


def add_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Draw the figures of a result that was saved without them.

    Parameters
    ----------
    folder : Path
        Of the saved result.
    figures : mapping of str to Figure
        All of the result.
    """
    index = read_index(folder)
    _write_figures(folder, figures)
    index["figures"] = {name: {"description": figure.description} for name, figure in figures.items()}
    index.pop("undrawn", None)
    _write_json(folder / "result.json", index)


def _write_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    for name, figure in figures.items():
        _write_bytes(folder / "figures" / f"{name}.svg", figure.svg())
        _write_bytes(folder / "figures" / f"{name}.png", figure.png())


def load_result(folder: Path) -> Result:
    """Read a result from a run folder; figures come back as images.

    Parameters
    ----------
    folder : Path
        Written by `save_result`.

    Returns
    -------
    Result
        With `folder` set.

    Raises
    ------
    UserError
        Where there is no result, it is of a newer form, or a file is missing or damaged; names the file.
    """
    result = load_shown(folder)
    index = read_index(folder)
    for name, about in index["arrays"].items():
        data = _read(folder / "arrays" / f"{name}.h5", _array_from_file)
        result.arrays[name] = data.assign_attrs(description=about["description"], units=about["unit"])
    for name, about in index["weights"].items():
        tensors = _read(folder / "weights" / f"{name}.safetensors", _tensors_from_file)
        tensors = {key: tensors[key] for key in about["tensors"] if key in tensors} | tensors  # in the order of saving
        result.weights[name] = Weights(tensors, about["description"], about["config"])
    for name, about in index["files"].items():
        result.files[name] = File(_read(folder / "files" / name, Path.read_bytes), about["description"])
    return result


def load_shown(folder: Path) -> Result:
    """Read what a report shows: a result without its arrays and weights, so that large ones stay on disk.

    Parameters, returns and errors are those of `load_result`.
    """
    index = read_index(folder)
    result = Result(folder=folder)
    for name, metric in _read(folder / "metrics.json", _json_from_file).items():
        result.metrics[name] = _metric_from_json(metric)
    for name, about in index["tables"].items():
        frame = _read(folder / "tables" / f"{name}.parquet", pandas.read_parquet)
        result.tables[name] = Table(frame, about["description"], about["units"])
    for name, about in index["figures"].items():
        images = {form: _read(folder / "figures" / f"{name}.{form}", Path.read_bytes) for form in ("svg", "png")}
        result.figures[name] = Figure(None, about["description"], images)
    for name, about in index["sections"].items():
        data = _read(folder / "sections" / f"{name}.json", _json_from_file)
        result.sections[name] = Section(about["kind"], data, about["description"])
    return result


def read_index(folder: Path) -> dict[str, Any]:
    """Read `result.json`: what there is of each kind, name to what is known without opening it.

    Parameters
    ----------
    folder : Path
        Written by `save_result`.

    Returns
    -------
    dict
        Arrays have "axes", "shape", "dtype", weights the shape and dtype of each tensor.

    Raises
    ------
    UserError
        Where there is none, or one of a newer form.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no result: {path} is missing. Give the folder of a finished run")
    index: dict[str, Any] = _read(path, _json_from_file)
    if not isinstance(index, dict) or not index.keys() >= _SUFFIXES.keys() | {"schema"}:
        raise UserError(f"{path} is damaged or not of this workbench")
    if index["schema"] != SCHEMA:
        raise UserError(f"{path}: schema {index['schema']!r}, but this version of the workbench reads {SCHEMA}")
    index.setdefault("files", {})  # which earlier results have not
    return index


def _index(result: Result) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "tables": {
            name: {"description": table.description, "units": dict(table.units)}
            for name, table in result.tables.items()
        },
        "arrays": {
            name: {
                "description": array.attrs["description"],
                "unit": array.attrs["units"],
                "axes": list(array.dims),
                "shape": list(array.shape),
                "dtype": str(array.dtype),
            }
            for name, array in result.arrays.items()
        },
        "weights": {
            name: {
                "description": weights.description,
                "config": weights.config,
                "tensors": {
                    key: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
                    for key, tensor in weights.items()
                },
            }
            for name, weights in result.weights.items()
        },
        "figures": {name: {"description": figure.description} for name, figure in result.figures.items()},
        "sections": {
            name: {"kind": section.kind, "description": section.description}
            for name, section in result.sections.items()
        },
        "files": {
            name: {"description": file.description, "bytes": len(file.data)} for name, file in result.files.items()
        },
    }


def _remove_others(result: Result, folder: Path) -> None:
    if (folder / "files").is_dir():
        for path in (folder / "files").iterdir():
            if path.is_file() and path.name not in result.files:
                path.unlink()
    for part, suffixes in _SUFFIXES.items():
        kept = {f"{name}{suffix}" for name in getattr(result, part) for suffix in suffixes}
        if (folder / part).is_dir():
            for path in (folder / part).iterdir():
                if path.suffix in suffixes and path.name not in kept:
                    path.unlink()


def _metric_to_json(metric: Metric) -> dict[str, Any]:
    shown = {key: _to_json(getattr(metric, key)) for key in ("value", "lo", "hi")}
    return {"value": shown["value"], "unit": metric.unit, "description": metric.description} | {
        key: shown[key] for key in ("lo", "hi")
    }


def _metric_from_json(metric: dict[str, Any]) -> Metric:
    numbers = {key: float(end) if isinstance(end := metric[key], str) else end for key in ("value", "lo", "hi")}
    return Metric(unit=metric["unit"], description=metric["description"], **numbers)


def _to_json(number: float | None) -> float | str | None:
    return number if number is None or math.isfinite(number) else str(number)


def _write_table(path: Path, name: str, table: Table) -> None:
    try:
        arrow = pyarrow.Table.from_pandas(table)
    except pyarrow.ArrowException as error:
        raise ValueError(f"table {name!r}: a column cannot be stored: {error}") from error
    fields = [field.with_metadata({"unit": table.units.get(field.name, "")}) for field in arrow.schema]
    about = {**(arrow.schema.metadata or {}), b"description": table.description.encode()}
    with _replacing(path) as part:
        pyarrow.parquet.write_table(arrow.cast(pyarrow.schema(fields, metadata=about)), part)


def _write_array(path: Path, data: xarray.DataArray) -> None:
    with _replacing(path) as part, h5py.File(part, "w") as file:
        values = _create(file, "values", data.values)
        values.attrs.update({**data.attrs, "name": str(data.name or "")})
        for axis, name in enumerate(data.dims):
            values.dims[axis].label = name
        for name, coordinate in sorted(data.coords.items(), key=lambda item: str(item[0])):
            scale = _create(file, f"coordinates/{name}", coordinate.values)
            scale.attrs["axes"] = json.dumps(coordinate.dims)
            if coordinate.dims == (name,):
                scale.make_scale(name)
                values.dims[data.dims.index(name)].attach_scale(scale)


def _create(file: h5py.File, name: str, values: np.ndarray) -> h5py.Dataset:
    if values.dtype.kind in "UO":
        return file.create_dataset(name, data=values.astype(object), dtype=h5py.string_dtype())
    packed = {"compression": "gzip", "shuffle": True} if values.nbytes > 65536 else {}
    return file.create_dataset(name, data=values, **packed)


def _array_from_file(path: Path) -> xarray.DataArray:
    with h5py.File(path) as file:
        values = file["values"]
        coordinates = {
            name: (tuple(json.loads(stored.attrs["axes"])), _values(stored))
            for name, stored in file.get("coordinates", {}).items()
        }
        axes = [dimension.label for dimension in values.dims]
        return xarray.DataArray(_values(values), coordinates, axes, name=values.attrs["name"] or None)


def _values(stored: h5py.Dataset) -> np.ndarray:
    return np.asarray(stored.asstr()[()], dtype=str) if h5py.check_string_dtype(stored.dtype) else stored[()]


def _write_weights(path: Path, weights: Weights) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    with _replacing(path) as part:
        save_file(tensors, part, metadata={"description": weights.description})


def _tensors_from_file(path: Path) -> Any:
    from safetensors.torch import load_file

    return load_file(path)


def _write_json(path: Path, data: Any, indent: int | None = 2) -> None:
    separators = None if indent else (",", ":")
    text = json.dumps(data, indent=indent, separators=separators, allow_nan=False)
    _write_bytes(path, (text + "\n").encode())


def _json_from_file(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _write_bytes(path: Path, data: bytes) -> None:
    with _replacing(path) as part:
        part.write_bytes(data)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which takes the place of `path` once all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # a name of its own, and the usual permissions
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    from safetensors import SafetensorError

    if not path.is_file():
        raise UserError(f"{path} is missing: the result in {path.parent} is incomplete; make the run again")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, pyarrow.ArrowException, SafetensorError) as error:
        raise UserError(f"{path} is damaged or not of this workbench: {error}") from error
