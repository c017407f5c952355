"""The Python of the pages runs as it stands there, in a folder that holds what a page takes for given."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

import workbench as wb

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- not run[^>]*-->\n)?```python\n(.*?)```", re.DOTALL)
HUB = ("tl:gpt2", "saelens:")
CALENDAR = "blocks.0.hook_resid_pre"
PYCODE = "blocks.2.hook_resid_post"


def blocks(page, hub=False):
    found = [code for skipped, code in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")) if not skipped]
    return [code for code in found if any(name in code for name in HUB) == hub]


def run_page(page, given=None):
    """Run a page's blocks in one module in the working folder, where some names are given; returns its names."""
    file = Path("page.py")
    file.write_text("\n".join(blocks(page)), encoding="utf-8")
    return runpy.run_path(str(file), init_globals=given)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def planted(period=7):
    rng = np.random.default_rng(0)
    classes = rng.integers(period, size=400)
    angle = 2 * np.pi * classes / period
    X = rng.normal(scale=0.1, size=(400, 16))
    X[:, :2] += np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return X, classes


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/subjects.md", "docs/zoo.md", "docs/datasets.md"])
def test_pages_that_take_nothing_for_given(page):
    assert run_page(page, {"wb": wb})


@pytest.mark.slow
def test_stores():
    pytest.importorskip("fsspec")
    wb.capture("zoo:calendar", data="calendar", hooks="blocks.0.hook_resid_post", rows=6000, out="acts")
    assert run_page("docs/store.md")["again"].n_rows == 6000


@pytest.mark.slow
def test_dictionaries():
    store = wb.capture("zoo:calendar", data="calendar", hooks=CALENDAR, rows=3000, out="acts")
    small = {"train.rows": 5000, "evaluate.splice_tokens": 300, "evaluate.draws": 20, "pages.latents": 4}
    wb.run("sae", store=store, hook_point=CALENDAR, latents=64, k=2, out="runs/sae-1", **small)
    wb.encode("acts", "runs/sae-1")
    subject = wb.load_subject("zoo:calendar")
    given = {"x": store.read_tensor(CALENDAR, slice(0, 50)), "rows": [3, 7], "subject": subject}
    found = run_page("docs/dictionaries.md", given | {"batch": subject.batch(["in July it is warm"])})
    assert len(found["values"])


@pytest.mark.long
@pytest.mark.parametrize(
    "page", ["README.md", "docs/first-steps.md", "docs/plugins/circuit.md", "docs/plugins/second-order.md"]
)
def test_pages_that_run_plugins_on_their_own(page):
    assert len(run_page(page)["result"].metrics)


@pytest.mark.long
@pytest.mark.parametrize("plugin", ["nullspace", "sae", "sparse-probe"])
def test_plugins_on_a_store(plugin):
    store = wb.capture("zoo:pycode", data="python-stdlib", hooks=PYCODE, rows=20_000, out="acts")
    X, classes = planted(3)
    subject = wb.load_subject("zoo:pycode")
    given = {"X": X, "y": classes == 1, "codes": classes, "other_directions": np.eye(16)[5:6]}
    given |= {"x": store.read_tensor(PYCODE, slice(0, 50)), "subject": subject, "batch": subject.batch(["a = 1"])}
    assert len(run_page(f"docs/plugins/{plugin}.md", given)["result"].metrics)


@pytest.mark.long
def test_circular():
    store = wb.capture(
        "zoo:calendar", data="calendar", hooks=[CALENDAR, "blocks.*.hook_resid_post"], rows=60_000, out="acts"
    )
    wb.run("sae", store=store, hook_point=CALENDAR, latents=256, k=2, out="runs/my-sae", **{"train.rows": 400_000})
    X, weekday = planted()
    found = run_page("docs/plugins/circular.md", {"xy": X[:, :2], "X": X, "weekday": weekday})
    assert found["rings"].shares[0] > 0.9
    assert "weekday" in set(found["result"].tables["clusters"]["label"])


@pytest.mark.network
@pytest.mark.parametrize("page", ["docs/plugins/circuit.md", "docs/plugins/circular.md"])
def test_what_needs_a_model_hub(page):
    file = Path("page.py")
    file.write_text("\n".join(blocks(page, hub=True)), encoding="utf-8")
    assert runpy.run_path(str(file), init_globals={"wb": wb})
