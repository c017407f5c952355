"""Adding to a result: what is kept, what is refused, and that it costs no heavy import."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

from workbench.results import Result

FRAME = pd.DataFrame({"hook_point": ["a", "b"], "accuracy": [0.5, 0.75]})


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        pytest.param(3, 3, id="int"),
        pytest.param(0.25, 0.25, id="float"),
        pytest.param(np.float32(0.5), 0.5, id="float32"),
        pytest.param(np.int64(7), 7, id="int64"),
        pytest.param(torch.tensor([0.5]), 0.5, id="tensor"),
    ],
)
def test_a_metric_is_a_plain_number(value, kept):
    result = Result()
    result.add_metric("m", value, description="d")
    assert result.metrics["m"].value == kept
    assert type(result.metrics["m"].value) is type(kept)


def test_a_table_is_kept_from_later_changes():
    frame = FRAME.copy()
    result = Result()
    result.add_table("t", frame, description="d", units={"accuracy": "%"})
    frame.loc[0, "accuracy"] = -1.0
    assert result.tables["t"].loc[0, "accuracy"] == 0.5


def test_printing_the_parts_of_a_large_result_stays_short(tmp_path):
    result = Result()
    drawn = Figure()
    drawn.subplots().plot(range(100))
    result.add_figure("f", drawn, description="a line")
    result.add_table("t", pd.DataFrame(np.zeros((5000, 30))).rename(columns=str), description="zeros")
    result.add_array("a", xr.DataArray(np.zeros((400, 300)), dims=("x", "y")), description="zeros")
    result.add_weights("w", {f"layer.{i}": torch.zeros(20, 20, 20) for i in range(9)}, description="zeros")
    result.add_section("s", "latents", [{"text": "word " * 100}] * 100, "many")
    result.save(tmp_path)
    for shown in (result, Result.load(tmp_path)):
        for kind in ("figures", "tables", "arrays", "weights", "sections"):
            text = repr(getattr(shown, kind))
            assert len(text) < 4000, kind
            assert text.count("\n") < 50, kind
        assert "layer.8 [20, 20, 20] torch.float32" in repr(shown.weights)


REFUSED = [
    pytest.param(lambda r: r.add_metric("", 1, description="d"), "starts with a letter", id="empty name"),
    pytest.param(lambda r: r.add_metric("a b", 1, description="d"), "'a b'", id="space"),
    pytest.param(lambda r: r.add_table("../t", FRAME, description="d"), "'../t'", id="path"),
    pytest.param(lambda r: r.add_table(".t", FRAME, description="d"), "starts with", id="hidden"),
    pytest.param(lambda r: r.add_metric("TAKEN", 1, description="d"), "has one of this name already", id="taken"),
    pytest.param(lambda r: r.add_metric("m", 1, description="d", lo=0), "both ends", id="half an interval"),
    pytest.param(lambda r: r.add_metric("m", 1, description="d", lo=2, hi=1), "above hi", id="turned interval"),
    pytest.param(
        lambda r: r.add_table("t", pd.DataFrame({0: [1]}), description="d"), "unique strings", id="column number"
    ),
    pytest.param(
        lambda r: r.add_table("t", FRAME, description="d", units={"acuracy": "%"}), "'acuracy'", id="unit of no column"
    ),
    pytest.param(
        lambda r: r.add_array("a", xr.DataArray([1], dims="a/b"), description="d"), "'a/b'", id="slash in axis"
    ),
    pytest.param(lambda r: r.add_weights("w", {}), "no tensors", id="no tensors"),
    pytest.param(lambda r: r.add_section("s", "text", {"x": float("nan")}), "NaN", id="NaN in a section"),
    pytest.param(lambda r: r.add_section("s", "text", {"x": np.zeros(2)}), "plain JSON", id="array in a section"),
]


@pytest.mark.parametrize(("add", "says"), REFUSED)
def test_bad_additions_are_refused_and_leave_nothing(add, says):
    result = Result()
    result.add_metric("taken", 1, description="d")
    with pytest.raises(ValueError, match=re.escape(says)):
        add(result)
    assert list(result.metrics) == ["taken"]
    assert not any([result.tables, result.arrays, result.weights, result.sections])


@pytest.mark.parametrize(
    "add",
    [
        pytest.param(lambda r: r.add_metric("m", "0.5", description="d"), id="text as metric"),
        pytest.param(lambda r: r.add_metric("m", True, description="d"), id="truth value as metric"),
        pytest.param(lambda r: r.add_array("a", np.zeros(3), description="d"), id="array without axes"),
        pytest.param(lambda r: r.add_array("a", xr.DataArray([object()]), description="d"), id="objects in array"),
        pytest.param(lambda r: r.add_figure("f", Figure().add_subplot(), description="d"), id="axes as figure"),
    ],
)
def test_things_of_another_type_are_refused(add):
    with pytest.raises(TypeError, match=r"'(m|a|f)'"):
        add(Result())


def test_a_section_keeps_its_own_copy():
    data = {"paragraphs": ["one"]}
    result = Result()
    result.add_section("s", "text", data, "d")
    data["paragraphs"].append("two")
    assert result.sections["s"].data == {"paragraphs": ["one"]}


def test_repr_names_what_is_there():
    result = Result()
    assert repr(result) == "<Result empty>"
    result.add_metric("loss", 1.0, description="d")
    assert repr(result) == "<Result metrics: loss>"


def test_importing_is_light():
    heavy = ["torch", "pandas", "matplotlib", "xarray", "h5py", "pyarrow"]
    line = f"import json, sys, workbench.results; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_parts_are_pandas_xarray_and_matplotlib(tmp_path):
    import matplotlib.figure
    import pandas
    import xarray

    result = Result()
    result.add_table("t", pandas.DataFrame({"layer": [0, 1], "loss": [2.0, 1.0]}), description="By layer.")
    result.add_array("a", xarray.DataArray([1.0, 2.0], dims=["layer"]), description="By layer.", unit="nats")
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([0, 1])
    result.add_figure("f", figure, description="A line.")
    result.save(tmp_path)
    for held in (result, Result.load(tmp_path)):
        table = held.tables["t"]
        assert isinstance(table, pandas.DataFrame)
        assert (table.description, type(table.head(1)), table.loc[1, "loss"]) == ("By layer.", pandas.DataFrame, 1.0)
        assert isinstance(held.arrays["a"], xarray.DataArray)
        assert held.arrays["a"].attrs == {"description": "By layer.", "units": "nats"}
    result.figures["f"].axes[0].set_title("mine")
    assert figure.axes[0].get_title() == "mine"
    with pytest.raises(AttributeError, match="axes: a loaded result has figures as images"):
        _ = Result.load(tmp_path).figures["f"].axes


def test_numpy_numbers_become_plain_ones():
    result = Result()
    result.add_metric("mean", np.float64(0.5), description="a float64 is a float, and prints as something else")
    assert type(result.metrics["mean"].value) is float
