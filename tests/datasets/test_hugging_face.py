"""Hugging Face dataset folders, read with pyarrow: against the library that wrote them where it matters."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workbench.datasets.hugging_face import HuggingFaceFolder, load_hugging_face
from workbench.datasets.loading import load_dataset
from workbench.errors import UserError
from workbench.plugins.datasets import provide_datasets

SOURCES = {source.name: source for source in provide_datasets()}
COLUMNS = {
    "text": ["one", "two", "three", "four"],
    "label": [1, 0, -1, 1],
    "year": [1990, 1991, None, 1993],
    "tokens": [[1], [2], [3], [4]],
}
FEATURES = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}


def table(**more):
    return pa.table({**COLUMNS, **more}).replace_schema_metadata({"huggingface": json.dumps(FEATURES)})


@pytest.fixture
def saved(tmp_path):
    """The layout of ``save_to_disk``, written by hand; two files."""
    folder = tmp_path / "saved"
    folder.mkdir()
    names = ["data-00000-of-00002.arrow", "data-00001-of-00002.arrow"]
    for name, part in zip(names, (table()[:3], table()[3:]), strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, part.schema) as writer:
            writer.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.fixture
def parquet(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    pq.write_table(table(id=["a", "b", "c", "d"]), folder / "train-00000-of-00001.parquet", row_group_size=3)
    pq.write_table(table(id=["e", "f", "g", "h"]), folder / "test-00000-of-00001.parquet")
    return folder


def check_content(dataset):
    documents = [dataset.document(i) for i in range(len(dataset))]
    assert [d.text for d in documents] == COLUMNS["text"]
    assert [d.fields.get("year") for d in documents] == COLUMNS["year"]
    assert [dataset.labels(d)["label"] for d in documents] == [1, 0, None, 1]
    assert dataset.label_spec("label").categories == ("neg", "pos")
    return [d.name for d in documents]


def test_a_saved_dataset(saved):
    dataset = load_dataset(str(saved), SOURCES)
    assert check_content(dataset) == ["train/0", "train/1", "train/2", "train/3"]
    assert "tokens" not in dataset.document(0).fields


def test_a_folder_of_parquet_files(parquet):
    assert check_content(load_hugging_face(f"{parquet}?split=train")) == ["a", "b", "c", "d"]
    assert check_content(load_hugging_face(str(parquet / "test-00000-of-00001.parquet"))) == ["e", "f", "g", "h"]


def test_a_saved_dictionary_of_splits(saved, tmp_path):
    both = tmp_path / "both"
    both.mkdir()
    saved.rename(both / "train")
    (both / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert check_content(HuggingFaceFolder(both))[0] == "train/0"


def test_further_labels(parquet):
    dataset = load_hugging_face(f"{parquet}?split=test&labels=year")
    assert [spec.kind for spec in dataset.label_specs] == ["categories", "number"]
    assert [dataset.labels(dataset.document(i))["year"] for i in range(4)] == [1990, 1991, None, 1993]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param("", "has the splits test, train: say which", id="no split"),
        pytest.param("?split=trian", "no split 'trian'; nearest: train", id="misspelt split"),
        pytest.param("?split=test&text=body", "no column 'body' (it has text, label", id="no such text"),
        pytest.param("?split=test&text=year", "holds int64, where text is wanted", id="text of another type"),
        pytest.param("?split=test&name=label", "rows 0 and 3 are both '1'", id="names twice"),
        pytest.param("?split=test&labels=mood", "no column 'mood'", id="no such label"),
        pytest.param(
            "?split=test&labels=tokens",
            "no column 'tokens' of numbers, truth values or text",
            id="label of another type",
        ),
    ],
)
def test_bad_options_are_explained(parquet, options, says):
    with pytest.raises(UserError) as error:
        load_hugging_face(f"{parquet}{options}")
    assert says in str(error.value)


def test_damaged_files_are_named(saved, parquet):
    (parquet / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"test-00000-of-00001\.parquet: not a readable parquet file"):
        load_hugging_face(f"{parquet}?split=test")
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(UserError, match=r"names data-00001-of-00002\.arrow, which is not there"):
        HuggingFaceFolder(saved)
    (saved / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state\.json: not readable"):
        HuggingFaceFolder(saved)


@pytest.mark.slow
def test_what_the_library_saves_is_read_as_the_library_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["neg", "pos"]),
            "n": datasets.Value("int64"),
        }
    )
    theirs = datasets.Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": [0, 1, 0], "n": [1, 2, 3]}, features=features
    )
    theirs.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict({"train": theirs, "test": theirs}).save_to_disk(tmp_path / "two")
    theirs.to_parquet(tmp_path / "three.parquet")
    for address in ("one", "two?split=test", "three.parquet"):
        ours = load_hugging_face(f"{tmp_path}/{address}")
        assert [ours.document(i).text for i in range(3)] == theirs["text"]
        assert [ours.labels(ours.document(i))["label"] for i in range(3)] == theirs["label"]
        assert ours.label_spec("label").categories == ("neg", "pos")
