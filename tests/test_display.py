"""Objects in a notebook."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from workbench import display
from workbench.report import new_figure
from workbench.results import Result
from workbench.runs import Run

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def result():
    result = Result()
    result.add_metric("accuracy", 0.9312, unit="share", description=HOSTILE, lo=0.92, hi=0.94)
    result.add_table("scores", pd.DataFrame({"label": [HOSTILE] * 20, "score": np.linspace(0, 1, 20)}), description="d")
    result.add_array("grid", xr.DataArray(np.zeros((2, 3)), dims=["layer", "k"]), description="zeros")
    figure, (axes,) = new_figure(width_in=2, height_in=2)
    axes.plot([1, 2])
    result.add_figure("curve", figure, description="a curve")
    return result


def test_a_result_shows_metrics_figures_first_rows_and_its_report(result, tmp_path):
    html = result._repr_html_()
    for words in ("accuracy", "0.931", "0.920 to 0.940", "data:image/svg+xml", "8 of 20 rows", "grid [2, 3]"):
        assert words in html
    assert HOSTILE not in html
    assert "report.html" not in html
    result.save(tmp_path)
    (tmp_path / "report.html").touch()
    assert f'href="{tmp_path.as_posix()}/report.html"' in result._repr_html_()


@pytest.mark.parametrize(("part", "name", "shown"), [
    ("metrics", "accuracy", "0.931"),
    ("tables", "scores", "8 of 20 rows"),
    ("arrays", "grid", "zeros"),
    ("figures", "curve", "a curve"),
])  # fmt: skip
def test_each_part_of_a_result_shows_itself(result, part, name, shown):
    assert shown in getattr(result, part)[name]._repr_html_()


@pytest.mark.parametrize(("part", "shown"), [
    ("metrics", "0.920 to 0.940"), ("tables", "8 of 20 rows"), ("figures", "data:image/svg+xml"),
])  # fmt: skip
def test_all_parts_of_a_kind_show_themselves(result, part, shown, tmp_path):
    result.save(tmp_path)
    for holding in (result, Result.load(tmp_path)):
        assert shown in getattr(holding, part)._repr_html_()
    assert "none" in getattr(Result(), part)._repr_html_()


def test_a_run_shows_what_ran(result, tmp_path):
    result.save(tmp_path)
    manifest = {"plugin": "sparse-probe", "help": "Which?", "subject": {"address": "zoo:pycode"}, "identity": "ab"}
    html = Run(tmp_path, manifest)._repr_html_()
    for words in ("sparse-probe", "Which?", "zoo:pycode", "accuracy"):
        assert words in html
    assert repr(Run(tmp_path, manifest)) == f"<Run {str(tmp_path)!r} of sparse-probe, identity ab>"


def test_a_store_shows_rows_hook_points_and_labels():
    spec = SimpleNamespace(axes=("d_model",), shape=(128,), dtype="bfloat16", unit="")
    label = SimpleNamespace(group="kinds", level="row", kind="yes/no", unit="")
    points = {f"blocks.{layer}.{name}": spec for layer in range(24) for name in ("hook_resid_post", "hook_mlp_out")}
    store = SimpleNamespace(
        folder="acts", n_rows=1200, n_rows_planned=5000, finished=False, hook_points=points,
        labels={"kind.string": label}, manifest={"model": {"address": "zoo:pycode"}, "dataset": {"address": HOSTILE}},
    )  # fmt: skip
    html = display.store_html(store)
    for words in (
        "1,200 of 5,000 so far: not finished",
        "d_model 128",
        "bfloat16",
        "zoo:pycode",
        "kind.string",
        "yes/no",
    ):
        assert words in html
    assert "blocks.0…23.hook_resid_post" in html
    assert html.count("<tr>") == 2 + 2 + 1  # headers, two folded hook points, one label
    assert HOSTILE not in html


def test_a_subject_shows_its_hook_points_folded():
    points = {
        f"blocks.{layer}.hook_resid_post": SimpleNamespace(axes=("batch", "pos", "d_model")) for layer in range(4)
    }
    subject = SimpleNamespace(
        address="zoo:pycode", modality="text", n_layers=4, d_model=128, n_heads=4, d_mlp=512, n_context=256,
        device="cpu", dtype="torch.float32", hook_points=points | {"hook_embed": SimpleNamespace(axes=("batch",))},
    )  # fmt: skip
    html = display.subject_html(subject)
    for words in ("blocks.0…3.hook_resid_post", "batch, pos, d_model", "hook_embed", "float32"):
        assert words in html


def test_a_dictionary_shows_where_it_reads_and_how_it_selects():
    dictionary = SimpleNamespace(
        address="runs/sae-1", W_enc=np.zeros((2048, 128)), k=32, activation="topk", hook_in="blocks.2.hook_resid_post",
        hook_out="blocks.2.hook_resid_post", subject_address="zoo:pycode", subject_fingerprint="",
    )  # fmt: skip
    html = display.dictionary_html(dictionary)
    for words in ("2,048", "topk, k = 32", "blocks.2.hook_resid_post", "zoo:pycode"):
        assert words in html


@pytest.mark.parametrize("tag", ["dl", "dt", "dd"])
def test_no_list_of_definitions_is_used(result, tag):
    """JupyterLab lays them out side by side, one over the other where there is little room."""
    assert f"<{tag}" not in result._repr_html_()


def test_layers_that_differ_are_not_folded():
    points = {"blocks.0.x": ["pos"], "blocks.1.x": ["pos", "head"], "blocks.3.x": ["pos"]}
    assert display.folded_hook_points(points) == {"blocks.0,3.x": ("pos",), "blocks.1.x": ("pos", "head")}


def test_display_is_registered_by_name_where_ipython_runs(monkeypatch):
    registered = []
    formatter = SimpleNamespace(for_type_by_name=lambda module, name, function: registered.append((module, name)))
    shell = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"text/html": formatter}))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    display.register()
    assert registered == []
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    display.register()
    classes = [getattr(importlib.import_module(module), name) for module, name in registered]
    assert [cls.__name__ for cls in classes] == ["Store", "Subject", "Dictionary"]
    assert [cls.__module__ for cls in classes] == [module for module, _ in registered]


def test_importing_is_light():
    line = "import sys, workbench.display; sys.exit(any(m in sys.modules for m in ('pandas', 'jinja2', 'torch')))"
    assert subprocess.run([sys.executable, "-c", line], check=False).returncode == 0
