import json
from dataclasses import asdict

import h5py
import numpy as np
import pytest

from workbench.cache import DamageError, LabelInfo, StoreError, open_store
from workbench.cache.labels import _digest
from workbench.cache.lock import WriterLock


def info(name="keyword", level="row", kind="binary", group="tokens", **more):
    return LabelInfo(name, group, level, kind, **more)


@pytest.fixture
def store(store_folder):
    return open_store(store_folder)


def test_values_of_every_kind_come_back(store):
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    row = np.arange(100)
    given = {
        "keyword": (info(), row % 2, row % 3 > 0),
        "day": (info("day", kind="categories", categories=days), row % 7, None),
        "depth": (info("depth", kind="ordered", unit="levels"), row - 50, None),
        "score": (info("score", kind="number", description="a score"), row / 8, row > 9),
        "hour": (info("hour", kind="cyclic", period=24.0, unit="h"), row % 24 + 0.5, None),
    }
    store.add_labels("tokens", given)
    assert store.labels == {name: entry[0] for name, entry in given.items()}
    for name, (what, values, mask) in given.items():
        got, defined = store.label(name)
        assert got.dtype == (np.float64 if what.kind in {"number", "cyclic"} else np.int64)
        assert np.array_equal(defined, np.ones(100, bool) if mask is None else mask)
        assert np.array_equal(got[defined], values[defined])
        assert (np.isnan(got[~defined]) if got.dtype == np.float64 else got[~defined] == 0).all()


def test_sequences_and_documents_are_spread_to_rows(store):
    store.add_labels(
        "wide",
        {
            "window": (info("window", "sequence", "ordered", "wide"), np.arange(10), None),
            "file": (info("file", "document", "number", "wide"), [0.5, 1.5, 2.5, 3.5, 4.5], np.arange(5) != 1),
        },
    )
    assert np.array_equal(store.label("window")[0], np.arange(100) // 10)
    values, defined = store.label("file")
    assert np.array_equal(defined, np.arange(100) // 20 != 1)
    assert np.array_equal(values[defined], (np.arange(100) // 20 + 0.5)[defined])


def test_a_group_is_replaced_whole_and_alone(store, store_folder):
    store.add_labels("tokens", {"keyword": (info(), np.ones(100), None)})
    store.add_labels("other", {"b": (info("b", group="other"), np.ones(100), None)})
    fingerprint, labels_before = store.fingerprint(), store.labels_fingerprint()
    store.add_labels("tokens", {"string": (info("string"), np.zeros(100), None)})
    assert list(store.labels) == ["b", "string"]
    assert store.fingerprint() == fingerprint
    assert store.labels_fingerprint() != labels_before
    only_b = store.labels_fingerprint(["b"])
    store.add_labels("tokens", {})
    assert list(store.labels) == ["b"]
    assert store.labels_fingerprint() == only_b
    assert store.verify() == []


BAD = [
    pytest.param(info(), np.ones(99), r"values \(99,\) .* the store has 100 rows", id="too short"),
    pytest.param(info(level="document"), np.ones(100), "the store has 5 documents", id="other level"),
    pytest.param(info(), np.full(100, 2), r"2 at row 0 is no value of kind 'binary'", id="neither yes nor no"),
    pytest.param(info(kind="categories", categories=("a",)), np.ones(100), "no value of kind 'categ", id="no category"),
    pytest.param(info(kind="ordered"), np.full(100, 0.5), "no value of kind 'ordered'", id="fraction"),
    pytest.param(info(kind="number"), np.full(100, np.nan), "nan at row 0", id="nan where defined"),
    pytest.param(info(group="other"), np.ones(100), "label 'keyword' of group 'tokens' says", id="group"),
    pytest.param(info(kind="ordered"), np.full(100, 1e30), "1e\\+30 at row 0 is no value of kind 'ordered'", id="huge"),
    pytest.param(info(kind="ordered"), np.full(100, 2**63, np.uint64), "9223372036854775808 at row 0", id="unsigned"),
    pytest.param(info(kind="ordered"), [2**70] * 100, "1180591620717411303424 at row 0", id="beyond any integer"),
    pytest.param(info(kind="number"), np.full(100, 1j), "values are complex128; they must be numbers", id="complex"),
    pytest.param(info(), ["yes"] * 100, "values are <U3; they must be numbers", id="words"),
]


@pytest.mark.parametrize(("what", "values", "says"), BAD)
def test_wrong_values_are_explained_and_change_nothing(store, what, values, says):
    store.add_labels("tokens", {"string": (info("string"), np.zeros(100), None)})
    with pytest.raises(StoreError, match=says):
        store.add_labels("tokens", {"keyword": (what, values, None)})
    assert list(store.labels) == ["string"]


BAD_INFOS = [
    pytest.param({"name": "a/b"}, "label name 'a/b'", id="slash"),
    pytest.param({"group": "../evil"}, r"label group '\.\./evil'", id="path"),
    pytest.param({"level": "token"}, "must be one of row, sequence, document", id="level"),
    pytest.param({"kind": "bool"}, "must be one of binary, categories", id="kind"),
    pytest.param({"kind": "categories"}, "needs the names of its categories", id="no categories"),
    pytest.param({"kind": "cyclic"}, "a period > 0 belongs to kind 'cyclic'", id="no period"),
    pytest.param({"kind": "cyclic", "period": np.inf}, "a period > 0 belongs to kind 'cyclic'", id="endless period"),
    pytest.param({"name": "caf\udce9"}, r"label name 'caf\\udce9': must be UTF-8", id="no text"),
    pytest.param({"period": 7.0}, "a period > 0 belongs to kind 'cyclic'", id="a period too many"),
]


@pytest.mark.parametrize(("change", "says"), BAD_INFOS)
def test_wrong_descriptions_are_explained(change, says):
    with pytest.raises(StoreError, match=says):
        info(**change)


@pytest.mark.parametrize("form", ["today's", "older"])
def test_flipped_bits_of_a_description_are_damage(store, store_folder, form):
    what = info("day", kind="categories", categories=("Monday", "Tuesday"), unit="d", description="of the week")
    store.add_labels("tokens", {"day": (what, np.ones(100), None)})
    path = store_folder / "labels" / "tokens.h5"
    if form == "older":  # has no checksum of its descriptions but that of the values, and they are read without
        with h5py.File(path, "r+") as file:
            del file.attrs["xxh3_128"]
    sound, text = path.read_bytes(), json.dumps(asdict(what)).encode()
    first, end = (0, len(text)) if form == "today's" else (text.index(b"row"), text.index(b"row") + 3)
    for place in range(sound.index(text) + first, sound.index(text) + end):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
        with pytest.raises(DamageError, match=r"labels/tokens\.h5"):
            _ = store.labels
    assert [damage.file for damage in store.verify()] == ["labels/tokens.h5"]


def test_labels_of_another_store_are_damage(store, store_folder, tmp_path, write_store, make_plan, arrays):
    """With as many rows, of other documents: every number would have been wrong, and nothing have said so."""
    write_store(tmp_path / "other", arrays, make_plan([20] * 5), rows_per_shard=24)
    other = open_store(tmp_path / "other")
    other.add_labels("tokens", {"keyword": (info(), np.ones(100), None)})
    (store_folder / "labels").mkdir()
    (store_folder / "labels/tokens.h5").write_bytes((tmp_path / "other/labels/tokens.h5").read_bytes())
    says = r"labels/tokens\.h5: has the labels of another store's rows"
    with pytest.raises(DamageError, match=says):
        store.label("keyword")
    assert [str(damage) for damage in store.verify()] == [says.replace("\\", "")]


@pytest.mark.parametrize(("level", "n"), [("row", 101), ("row", 99), ("sequence", 9), ("document", 4)])
def test_other_numbers_of_values_are_damage(store, store_folder, level, n):
    """Labels of an older version do not say whose they are."""
    store.add_labels("tokens", {"keyword": (info(level=level), np.ones(n_of(store, level)), None)})
    path = store_folder / "labels" / "tokens.h5"
    with h5py.File(path, "r+") as file:
        del file.attrs["examples"], file.attrs["xxh3_128"], file["keyword/values"], file["keyword/defined"]
        values, defined = np.ones(n, np.uint8), np.ones(n, np.bool_)
        file["keyword"].update({"values": values, "defined": defined})
        file["keyword"].attrs["xxh3_128"] = _digest(info(level=level), values, defined)
    with pytest.raises(DamageError, match=rf"tokens\.h5, dataset /keyword: has {n} {level}s"):
        store.label("keyword")


def n_of(store, level):
    return {"row": store.n_rows, "sequence": store.examples.n_sequences, "document": len(store.documents)}[level]


def test_names_are_unique_in_a_store(store):
    store.add_labels("tokens", {"keyword": (info(), np.ones(100), None)})
    with pytest.raises(StoreError, match="label 'keyword' is in group 'tokens' already"):
        store.add_labels("other", {"keyword": (info(group="other"), np.ones(100), None)})
    with pytest.raises(StoreError, match="has no label 'keywrod'; nearest: keyword"):
        store.label("keywrod")


@pytest.mark.parametrize("group", ["../shards/000000", "..", "", "/tmp/x"])
def test_no_file_beside_the_groups_can_be_removed(store, group):
    with pytest.raises(StoreError, match="label group"):
        store.add_labels(group, {})
    assert store.verify() == []


def test_damage_is_named(store, store_folder):
    store.add_labels("tokens", {"keyword": (info(), np.arange(100) % 2, None)})
    path = store_folder / "labels" / "tokens.h5"
    with h5py.File(path, "r+") as file:
        file["keyword/values"][3] = 0
    with pytest.raises(DamageError, match=r"labels/tokens\.h5, dataset /keyword: its values differ"):
        store.label("keyword")
    assert [damage.dataset for damage in store.verify()] == ["/keyword"]
    path.write_bytes(b"nothing")
    with pytest.raises(DamageError, match=r"labels/tokens\.h5: cannot be read"):
        _ = store.labels
    assert [damage.file for damage in store.verify()] == ["labels/tokens.h5"]


def test_two_cannot_replace_labels_at_once(store, store_folder, monkeypatch):
    monkeypatch.setattr("workbench.cache.labels.LOCK_TIMEOUT_S", 0.05)
    (store_folder / "labels").mkdir()
    lock = WriterLock(store_folder / "labels" / ".lock")
    with pytest.raises(StoreError, match="labels is being written by another process"):
        store.add_labels("tokens", {"keyword": (info(), np.ones(100), None)})
    lock.release()
    store.add_labels("tokens", {"keyword": (info(), np.ones(100), None)})


def test_labels_of_an_unfinished_store_cover_the_plan(tmp_path, write_store, arrays, examples):
    write_store(tmp_path / "acts", arrays, examples, end=50, rows_per_shard=24)
    store = open_store(tmp_path / "acts")
    store.add_labels("tokens", {"keyword": (info(), np.arange(100) % 2, None)})
    assert store.label("keyword")[0].tolist() == [0, 1] * 24
