"""A result on disk: all of it comes back, equal results give equal bytes, damage is named."""

import json
import math

import h5py
import numpy as np
import pandas as pd
import pandas.testing
import pyarrow.parquet
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import UserError
from workbench.report import new_figure
from workbench.results import Result
from workbench.results_files import load_shown


def make_result():
    result = Result()
    result.add_metric("loss", 1.25, unit="nats", description="on held-out documents", lo=1.0, hi=1.5)
    result.add_metric("undefined", float("nan"), description="no rows")
    result.add_metric("rows", 12, description="read")
    frame = pd.DataFrame({"label": ["a", None, "ü"], "score": [0.5, np.nan, -np.inf], "k": [1, 2, 3], "ok": [True] * 3})
    result.add_table("scores", frame, description="a row per label", units={"score": "%"})
    result.add_table("indexed", frame.set_index("k")[["score"]], description="with an index")
    data = xr.DataArray(
        np.arange(6, dtype=np.float32).reshape(2, 3),
        {"hook_point": ["blocks.0/x", "é"], "k": [1, 2, 4], "seed": 3, "depth": ("hook_point", [0.0, 0.5])},
        ["hook_point", "k"],
        name="accuracy",
    )
    result.add_array("grid", data, description="by hook point and k", unit="%")
    result.add_array("words", xr.DataArray(np.array([["a"], ["ß"]]), dims=["x", "y"]), description="text")
    result.add_array("scalar", xr.DataArray(True), description="no axes")
    figure, (axes,) = new_figure(width_in=2, height_in=1.5)
    axes.plot([1, 2], [3, 1])
    axes.set_title("loss")
    result.add_figure("curve", figure, description="falls")
    result.add_weights("sae", {"W": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).T}, description="w")
    result.add_section("note", "text", {"paragraphs": ["</script> ü"]}, "a note")
    result.add_file("graph.graphml", "<graphml>ü</graphml>", description="for others")
    return result


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    make_result().save(folder)
    return folder


def test_files_are_kept_as_they_are_and_those_of_an_earlier_result_go(saved, tmp_path):
    assert (saved / "files" / "graph.graphml").read_bytes() == "<graphml>ü</graphml>".encode()
    loaded = Result.load(saved)
    assert loaded.files["graph.graphml"].data == (saved / "files" / "graph.graphml").read_bytes()
    assert loaded.files["graph.graphml"].description == "for others"
    make_result().save(tmp_path)
    Result().save(tmp_path)
    assert not list((tmp_path / "files").iterdir())
    index = json.loads((saved / "result.json").read_text())
    older = tmp_path / "older"
    make_result().save(older)
    (older / "result.json").write_text(json.dumps({key: value for key, value in index.items() if key != "files"}))
    assert Result.load(older).files == {}  # of a workbench that knew no files


def test_everything_comes_back(saved):
    made, loaded = make_result(), Result.load(saved)
    assert loaded.folder == saved
    assert {k: v for k, v in loaded.metrics.items() if k != "undefined"} == {
        k: v for k, v in made.metrics.items() if k != "undefined"
    }
    assert math.isnan(loaded.metrics["undefined"].value)
    for part in ("metrics", "tables", "arrays", "figures", "weights", "sections"):
        assert list(getattr(loaded, part)) == list(getattr(made, part))
    for name, table in made.tables.items():
        pandas.testing.assert_frame_equal(loaded.tables[name], table)
        assert (loaded.tables[name].units, loaded.tables[name].description) == (table.units, table.description)
    for name, array in made.arrays.items():
        xr.testing.assert_identical(loaded.arrays[name], array)
        assert loaded.arrays[name].dtype == array.dtype
    torch.testing.assert_close(loaded.weights["sae"]["W"], made.weights["sae"]["W"], rtol=0, atol=0)
    assert loaded.weights["sae"].description == "w"
    assert loaded.sections == made.sections
    assert loaded.figures["curve"].figure is None
    assert loaded.figures["curve"].svg() == made.figures["curve"].svg()
    assert loaded.figures["curve"].png().startswith(b"\x89PNG")


def test_equal_results_give_equal_bytes_also_when_loaded_and_saved_again(saved, tmp_path):
    make_result().save(tmp_path / "again")
    Result.load(saved).save(tmp_path / "loaded")
    assert files(tmp_path / "again") == files(saved)
    assert files(tmp_path / "loaded") == files(saved)


def test_other_readers_find_axes_units_and_plain_json(saved):
    with h5py.File(saved / "arrays" / "grid.h5") as file:
        assert [dimension.label for dimension in file["values"].dims] == ["hook_point", "k"]
        assert list(file["values"].dims[1][0][:]) == [1, 2, 4]
        assert file["values"].attrs["units"] == "%"
    schema = pyarrow.parquet.read_schema(saved / "tables" / "scores.parquet")
    assert schema.field("score").metadata == {b"unit": b"%"}
    metrics = json.loads((saved / "metrics.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert metrics["loss"] == {
        "value": 1.25, "unit": "nats", "description": "on held-out documents", "lo": 1.0, "hi": 1.5
    }  # fmt: skip
    assert metrics["undefined"]["value"] == "nan"


def test_saving_again_removes_what_is_gone_and_nothing_else(tmp_path):
    make_result().save(tmp_path)
    (tmp_path / "log.txt").write_text("kept")
    (tmp_path / "tables" / "notes.txt").write_text("kept")
    small = Result()
    small.add_metric("loss", 1, description="d")
    small.save(tmp_path)
    assert sorted(files(tmp_path)) == ["log.txt", "metrics.json", "result.json", "tables/notes.txt"]


def test_what_a_report_shows_is_read_without_arrays_and_weights(saved):
    shown = load_shown(saved)
    assert (shown.arrays, shown.weights) == ({}, {})
    assert list(shown.tables) == ["scores", "indexed"]


def test_a_column_that_parquet_cannot_hold_names_the_table(tmp_path):
    result = Result()
    result.add_table("mixed", pd.DataFrame({"x": [1, "a", object()]}), description="d")
    with pytest.raises(ValueError, match="'mixed'"):
        result.save(tmp_path)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    "name",
    [
        "result.json", "metrics.json", "tables/scores.parquet", "arrays/grid.h5", "weights/sae.safetensors",
        "sections/note.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_damage_is_an_error_that_names_the_file(name, damage, tmp_path):
    make_result().save(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    with pytest.raises(UserError) as raised:
        Result.load(tmp_path)
    assert str(path) in str(raised.value)


def test_a_folder_without_a_result_and_a_newer_result_are_refused(tmp_path):
    with pytest.raises(UserError, match="holds no result"):
        Result.load(tmp_path)
    Result().save(tmp_path)
    (tmp_path / "result.json").write_text((tmp_path / "result.json").read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(UserError, match="schema 2"):
        Result.load(tmp_path)


@given(value=st.floats(), ends=st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)))
def test_every_number_comes_back(value, ends, tmp_path_factory):
    result = Result()
    result.add_metric("m", value, description="d", lo=min(ends), hi=max(ends))
    folder = tmp_path_factory.mktemp("number")
    result.save(folder)
    metric = Result.load(folder).metrics["m"]
    assert metric == result.metrics["m"] or math.isnan(value)
    assert math.isnan(metric.value) == math.isnan(value)


def test_what_was_loaded_is_saved_as_the_same_files(tmp_path):
    result = Result()
    result.add_weights("model", {"second": torch.ones(2), "first": torch.zeros(3)}, description="two tensors")
    result.save(tmp_path / "once")
    Result.load(tmp_path / "once").save(tmp_path / "again")
    assert (tmp_path / "again" / "result.json").read_bytes() == (tmp_path / "once" / "result.json").read_bytes()
