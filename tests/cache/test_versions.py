"""Stores of earlier schemas still open, and the page that describes the schema leaves nothing out."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from workbench.cache import SCHEMA, open_store

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("schema", range(1, SCHEMA + 1))
def test_a_store_of_each_schema_is_read(schema):
    store = open_store(ROOT / "tests" / "data" / f"store-schema-{schema}")
    want = np.arange(24, dtype=np.float32).reshape(12, 2)
    assert store.verify() == []
    assert store.finished
    assert np.array_equal(store.read("blocks.0.hook_resid_post"), want)
    assert np.array_equal(store.read("blocks.0.hook_mlp_out"), want)
    assert np.array_equal(store.read("blocks.0.attn.hook_z"), want[..., None].astype(np.float16))
    assert store.origins[7].tolist() == (2, 2, 1, 12, False)
    assert store.document_fields[3] == {"held_out": True}
    assert store.label("even")[0].tolist() == [1, 0] * 6
    assert store.label("day")[0][:9].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert store.label("day")[1].tolist() == [True] * 9 + [False] * 3


def test_the_page_names_every_key_dataset_and_attribute():
    folder = ROOT / "tests" / "data" / f"store-schema-{SCHEMA}"
    content = json.loads((folder / "manifest.json").read_text())
    wanted = {*content, *content["shards"][0], *next(iter(content["activations"].values()))}

    def note(name, item):
        wanted.update(item.attrs)
        if isinstance(item, h5py.Dataset):
            wanted.update(item.dtype.names or ())
            wanted.add("/" + re.sub(r"blocks[^/]*", "HOOK_POINT", re.sub("even|day", "LABEL", name)))

    for path in folder.rglob("*.h5"):
        with h5py.File(path) as file:
            wanted.update(file.attrs)
            file.visititems(note)
    assert [name for name in sorted(wanted) if f"`{name}`" not in PAGE] == []


def test_the_pages_examples_run(tmp_path, monkeypatch, specs, examples, arrays, write_store):
    monkeypatch.chdir(tmp_path)
    write_store(Path("acts"), arrays, examples)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/store.md", "exec"), {})  # noqa: S102 - our own page
    assert open_store("mine").finished
