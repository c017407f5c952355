"""Labels of a store: from its dataset, from CSV and from JSON lines."""

import json

import numpy as np
import pytest

from workbench.capturing import capture
from workbench.datasets.protocol import Dataset, Document, LabelSpec, Span, SpanLabel
from workbench.errors import UserError
from workbench.label_files import label_from_file
from workbench.subjects.sources import load_subject
from workbench.testing.tiny import save_tiny_decoder

HOOK = "hook_embed"
TEXTS = {"a": "red fish, blue fish and one more", "b": "no colour", "c": "blue"}


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(f"zoo:{save_tiny_decoder(tmp_path_factory.mktemp('tiny'))}", device="cpu")


@pytest.fixture
def store(subject, tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text, "name": name}) for name, text in TEXTS.items()))
    return capture(subject, data=path, hooks=HOOK, out=tmp_path / "acts")


@pytest.fixture
def write(tmp_path):
    def write(name, *lines):
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return path

    return write


def test_labels_of_documents_from_csv(store, write):
    specs = label_from_file(
        store, write("mood.csv", "document,mood,scores/size", "a,good,3", "c,bad,", "elsewhere,good,1")
    )
    assert [(spec.name, spec.group, spec.kind) for spec in specs] == [
        ("mood", "mood", "categories"),
        ("size", "scores", "number"),
    ]
    assert store.labels["mood"].categories == ("bad", "good")
    values, defined = store.label("mood")
    documents = np.array(store.documents)[store.origins["document"]]
    assert set(documents[defined]) == {"a", "c"}
    assert set(values[documents == "a"]) == {1}
    assert set(documents[store.label("size")[1]]) == {"a"}


@pytest.mark.parametrize("level", ["row", "sequence"])
def test_labels_of_rows_and_sequences_from_csv(store, write, level):
    label_from_file(store, write("x.csv", f"{level},flag", "0,yes", "1,no"))
    values, defined = store.label("flag")
    at = np.arange(store.n_rows) if level == "row" else store.origins["sequence"]
    assert (defined == (at < 2)).all()
    assert (values[defined] == (at[defined] == 0)).all()


def test_spans_from_json_lines(store, write):
    blue = [
        {"document": name, "labels": {"blue": [[text.find("blue"), text.find("blue") + 4]]}}
        for name, text in TEXTS.items()
        if "blue" in text
    ]
    label_from_file(store, write("colours.jsonl", *blue))
    values, defined = store.label("blue")
    rows = np.flatnonzero(values)
    documents = np.array(store.documents)[store.origins["document"]]
    assert documents[rows].tolist() == ["a", "c"] or documents[rows].tolist() == ["c", "a"]
    assert all(store.context(row, 0, 0).offsets[0, 0] == TEXTS[documents[row]].find("blue") for row in rows)
    assert (defined == (~store.origins["special"] & (documents != "b"))).all()


def test_a_group_is_replaced_and_others_stay(store, write):
    label_from_file(store, write("one.csv", "document,x,y", "a,1,2"))
    label_from_file(store, write("two.csv", "document,z", "a,1"))
    label_from_file(store, write("one.csv", "document,x", "a,5"))
    assert set(store.labels) == {"x", "z"}
    assert set(store.label("x")[0][store.label("x")[1]]) == {5}


BAD_FILES = [
    pytest.param("x.txt", ["document,a", "a,1"], "ends in .csv, .jsonl or .ndjson", id="suffix"),
    pytest.param("x.csv", ["file,a", "a,1"], "the first column is 'file'; it must be document", id="level"),
    pytest.param("x.csv", ["document,a", "q,1"], "no document of it is in", id="no document"),
    pytest.param("x.csv", ["document,a"], "there is no label in it", id="no entry"),
    pytest.param("x.csv", ["document", "a"], "line 1: there is no column but 'document'", id="no label"),
    pytest.param("x.csv", ["document,a,b", "a,1,", "b,2, "], "the column 'b' has no value in any line", id="no value"),
    pytest.param("x.csv", ["document;a", "a;1,5"], "separate columns by commas, not by semicolons", id="semicolons"),
    pytest.param("x.csv", ["row,a", "-1,1"], "line 2: row '-1': the store has rows 0 to", id="row"),
    pytest.param("x.csv", ["document,a/b/c", "a,1"], "line 1: label 'a/b/c' must be called", id="name"),
    pytest.param("x.jsonl", ['{"name": "a"}'], "line 1: 'document' is None", id="no name"),
    pytest.param("x.jsonl", ['{"document": "a"}', '{"document": "a"}'], "line 2: 'a' was labelled in", id="twice"),
    pytest.param(
        "x.jsonl", ['{"document": "c", "labels": {"x": [[0, 9]]}}'], "span from 0 to 9: the text has 4", id="span"
    ),
]


@pytest.mark.parametrize(("name", "lines", "says"), BAD_FILES)
def test_a_bad_label_file_is_explained(store, write, name, lines, says):
    with pytest.raises(UserError) as error:
        label_from_file(store, write(name, *lines))
    assert says in str(error.value)
    assert store.labels == {}


def test_a_folder_is_no_label_file(store, tmp_path):
    with pytest.raises(UserError, match="is a folder; a label file ends in"):
        label_from_file(store, tmp_path)


def test_spans_need_the_text_that_was_captured(store, write, tmp_path):
    spans = write("x.jsonl", {"document": "c", "labels": {"x": [[0, 1]]}})
    with (tmp_path / "corpus.jsonl").open("a") as corpus:
        corpus.write("\n" + json.dumps({"text": "more"}))
    with pytest.raises(UserError, match=r"corpus\.jsonl has changed since"):
        label_from_file(store, spans)
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(UserError, match="is not at hand"):
        label_from_file(store, spans)


class Shapes(Dataset):
    """Labels of every level; row level given as one number, too."""

    address, modality = "shapes", "text"
    label_specs = tuple(LabelSpec(level, "levels", level, "number") for level in ("row", "sequence", "document"))

    def __len__(self):
        return 2

    def document(self, index):
        return Document(f"doc{index}", "text " * 10)

    def fingerprint(self):
        return "shapes"

    def labels(self, document):
        return dict.fromkeys(("row", "sequence", "document"), 3.5) if document.name == "doc1" else {}


def test_one_number_is_the_value_of_all_that_a_document_has(subject, tmp_path):
    store = capture(subject, data=Shapes(), hooks=HOOK, out=tmp_path / "acts")
    for level in ("row", "sequence", "document"):
        values, defined = store.label(level)
        assert (defined == (store.origins["document"] == 1)).all()
        assert set(values[defined]) == {3.5}


def test_spans_on_a_label_of_documents_are_refused(subject, tmp_path):
    class Wrong(Shapes):
        def labels(self, document):
            return {"document": SpanLabel([Span(0, 1, 1.0)])}

    with pytest.raises(UserError, match="label 'document' of document 'doc0' has spans, and its level is document"):
        capture(subject, data=Wrong(), hooks=HOOK, out=tmp_path / "acts")
    assert not (tmp_path / "acts").exists()
