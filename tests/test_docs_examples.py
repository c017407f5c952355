"""The longer examples of the docs are run as they stand there."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from pluggy import PluginManager

from workbench import hookspecs
from workbench.capturing import capture
from workbench.errors import UserError
from workbench.plugin import LoadOptions

PAGE = (Path(__file__).parents[1] / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")


def run_example(holding, folder):
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if holding in block)
    file = folder / "example.py"
    file.write_text(block, encoding="utf-8")
    return runpy.run_path(str(file))


@pytest.fixture(scope="module")
def offers(tmp_path_factory):
    example = run_example("class Poems", tmp_path_factory.mktemp("example"))
    manager = PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(type("Package", (), {n: staticmethod(f) for n, f in example.items() if n.startswith("provide_")}))
    ((dataset,),), ((subject,),) = manager.hook.provide_datasets(), manager.hook.provide_subjects()
    return dataset, subject


def test_the_example_of_a_dataset_and_a_subject_can_be_captured(offers, tmp_path):
    dataset, subject = offers
    poems, deaf = dataset.load(""), subject.load("calendar", LoadOptions(device="cpu"))
    hooks = ["blocks.0.hook_attn_out", "blocks.0.hook_mlp_out"]
    store = capture(deaf, data=poems, hooks=hooks, out=tmp_path / "acts")
    assert store.documents == ["rose", "rain"]
    assert store.manifest["dataset"]["address"] == "poems"

    colour, defined = store.label("colour")
    for row in np.flatnonzero(defined):
        place = store.origins[row]
        window = deaf.windows(poems.document(place["document"]).text)[0]
        start, end = window.offsets[place["position"]]
        text = poems.document(place["document"]).text
        touches = any(start < found.end() and found.start() < end for found in re.finditer("red|blue", text))
        assert colour[row] == touches
    assert 2 <= colour[defined].sum() < defined.sum()
    mood, known = store.label("mood")
    assert mood[known].tolist() == (store.origins["document"][known] == 0).tolist()

    written = store.read("blocks.0.hook_attn_out")
    assert np.ptp(written, axis=0).max() == 0  # the bias at most
    assert np.ptp(store.read("blocks.0.hook_mlp_out"), axis=0).max() > 0


def test_the_example_explains_wrong_names(offers):
    dataset, _ = offers
    assert len(dataset.load("rain")) == 1
    assert dataset.load("rain").fingerprint() != dataset.load("").fingerprint()
    with pytest.raises(UserError, match="no poem 'snow'; there are rose, rain"):
        dataset.load("snow")


def test_the_example_of_a_result_can_be_saved_and_loaded(tmp_path):
    result = run_example("add_figure", tmp_path)["result"]
    result.save(tmp_path / "run")
    loaded = type(result).load(tmp_path / "run")
    assert (list(loaded.figures), list(loaded.arrays)) == (["by-layer"], ["scores"])
    assert (list(loaded.weights), list(loaded.sections)) == (["probe"], ["notes"])
