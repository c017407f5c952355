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
    if schema >= 2:
        mid = store.read("blocks.0.hook_resid_mid")
        assert store.int8_factors["blocks.0.hook_resid_mid"].tolist() == [1, 2]
        assert (np.abs(mid - want * [1, 100]) <= (want[:, 1:] * 50 / 127) * [0.501, 1.002]).all()
        assert mid[11].tolist() == [18.1103515625, 2300.0146484375]
        for name in ("blocks.0.attn.hook_pattern", "blocks.0.mlp.hook_post"):
            assert np.array_equal(store.read(name), want)
    assert store.origins[7].tolist() == (2, 2, 1, 12, False)
    ordinary = store.shuffled("blocks.0.hook_resid_post", batch_rows=5, seed=0)  # special tokens are counted first
    assert sorted(row.tolist() for batch in ordinary for row in batch) == want[store.ordinary].tolist()
    assert store.document_fields[3] == {"held_out": True}
    assert store.label("even")[0].tolist() == [1, 0] * 6
    assert store.label("day")[0][:9].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert store.label("day")[1].tolist() == [True] * 9 + [False] * 3


def test_a_store_carries_the_oldest_schema_that_can_hold_it(store_folder):
    """A store of plain types is read by every earlier version: what is new in it is a group that need not be there."""
    old = ROOT / "tests" / "data" / "store-schema-1"
    for name in ("manifest.json", "shards/000000.h5", "index.h5", "examples.h5"):
        schema, found, *rest = outline(store_folder / name)
        found = {entry for entry in found if not entry[0].startswith("special")} if name.startswith("shards") else found
        assert (schema, found, *rest) == outline(old / name)


def outline(path):
    """Schema, keys, groups, datasets and attributes of a file."""
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        return content["schema"], content.keys(), content["shards"][0].keys()
    with h5py.File(path) as file:
        found = [(".", *sorted(file.attrs.keys() - {"capture"}))]  # which earlier versions do without
        file.visititems(lambda name, item: found.append((re.sub(r"blocks[^/]*", "HOOK_POINT", name), *item.attrs)))
        return file.attrs["schema"], set(found)


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
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, "docs/store.md", "exec"), {})  # noqa: S102 - our own page
    assert open_store("mine").finished
