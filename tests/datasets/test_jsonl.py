"""JSON lines: documents, fields, labels on documents and spans, and everything that can be wrong with a line."""

import json
from pathlib import Path

import pytest

from workbench.datasets.jsonl import JsonLines, load_jsonl
from workbench.datasets.protocol import Span, SpanLabel
from workbench.errors import UserError


@pytest.fixture
def write(tmp_path):
    def write(*records, name="corpus.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records))
        return path

    return write


def test_documents_and_fields(write):
    path = write(
        {"text": "é one", "name": "a", "year": 1998, "tags": ["x"]}, "", {"id": 7, "text": "two"}, {"text": ""}
    )
    dataset = JsonLines(path)
    first, second, third = (dataset.document(i) for i in range(3))
    assert (first.name, first.text, dict(first.fields)) == ("a", "é one", {"year": 1998})
    assert (second.name, second.text) == ("7", "two")
    assert third.name == "corpus.jsonl:4"
    assert dataset.label_specs == ()


def test_other_names_of_text_and_name(write):
    dataset = load_jsonl(f"{write({'body': 'b', 'key': 'k', 'text': 'other'})}?text=body&name=key")
    document = dataset.document(0)
    assert (document.name, document.text, dict(document.fields)) == ("k", "b", {"text": "other"})


def test_a_folder_of_files(write, tmp_path):
    write({"text": "a"}, name="1.jsonl")
    write({"text": "b"}, name="2.jsonl")
    dataset = JsonLines(tmp_path)
    assert [dataset.document(i).name for i in range(2)] == ["1.jsonl:1", "2.jsonl:1"]


LABELLED = [
    {
        "text": "Anna saw Rome.",
        "labels": {
            "mood": "good",
            "score": 2.5,
            "ok": True,
            "place": [[9, 13]],
            "entity": [[0, 4, "person"], [9, 13, "city"]],
        },
    },
    {"text": "no", "labels": {"mood": "bad", "score": 1, "ok": False, "place": [], "hour:cyclic=24": 23}},
    {"text": "nothing"},
]


def test_labels_of_documents(write):
    dataset = JsonLines(write(*LABELLED))
    specs = {spec.name: spec for spec in dataset.label_specs}
    assert (specs["mood"].kind, specs["mood"].categories, specs["mood"].level) == (
        "categories",
        ("bad", "good"),
        "document",
    )
    assert (specs["score"].kind, specs["ok"].kind) == ("number", "binary")
    assert (specs["hour"].kind, specs["hour"].period) == ("cyclic", 24)
    values = [dataset.labels(dataset.document(i)) for i in range(3)]
    assert [v["mood"] for v in values] == [1, 0, None]
    assert [v["score"] for v in values] == [2.5, 1, None]
    assert [v["ok"] for v in values] == [1, 0, None]
    assert [v["hour"] for v in values] == [None, 23, None]


def test_labels_of_spans(write):
    dataset = JsonLines(write(*LABELLED))
    values = [dataset.labels(dataset.document(i)) for i in range(3)]
    assert dataset.label_spec("place").level == "row"
    assert values[0]["place"] == SpanLabel([Span(9, 13, 1.0)], background=0.0)
    assert values[1]["place"] == SpanLabel([], background=0.0)
    assert values[2]["place"] is None
    assert dataset.label_spec("entity").categories == ("city", "person")
    assert values[0]["entity"] == SpanLabel([Span(0, 4, 1.0), Span(9, 13, 0.0)], background=None)


def test_the_long_form_of_spans(write):
    labels = {"scopes/depth:ordered": {"spans": [[0, 2, 3]], "every": True, "background": 0}}
    dataset = JsonLines(write({"text": "ab cd", "labels": labels}))
    spec = dataset.label_specs[0]
    assert (spec.name, spec.group, spec.kind) == ("depth", "scopes", "ordered")
    assert dataset.labels(dataset.document(0))["depth"] == SpanLabel([Span(0, 2, 3.0, every=True)], background=0.0)


GOOD = {"text": "abc", "labels": {"x": 1, "y": [[0, 1, "a"]]}}
BAD_LINES = [
    pytest.param("{", "line 2: not JSON", id="not JSON"),
    pytest.param("[1]", "line 2: list where an object", id="not an object"),
    pytest.param({"txt": "a"}, "line 2: no field 'text' (it has txt)", id="no text"),
    pytest.param({"text": 3}, "field 'text' is 3", id="text of another type"),
    pytest.param({"text": "a", "name": 1.5}, "field 'name' is 1.5", id="name of another type"),
    pytest.param({"text": "a", "name": "corpus.jsonl:1"}, "was used in", id="name twice"),
    pytest.param({"text": "a", "labels": 3}, "'labels' is 3", id="labels of another type"),
    pytest.param({"text": "a", "labels": {"x": "b"}}, "label 'x' is the text 'b' here and a number", id="other type"),
    pytest.param(
        {"text": "a", "labels": {"y": "b"}}, "on the document here and on the row elsewhere", id="other level"
    ),
    pytest.param(
        {"text": "a", "labels": {"y": [[0, 2, "a"]]}}, "from 0 to 2 of a text of 1 characters", id="span too long"
    ),
    pytest.param({"text": "a", "labels": {"y": [[0, "1"]]}}, "has the span [0, '1']", id="span of another form"),
    pytest.param({"text": "a", "labels": {"y": {"span": []}}}, "has span, where spans", id="long form misspelt"),
    pytest.param('{"text": "a", "labels": {"x": NaN}}', "NaN is not JSON", id="NaN"),
    pytest.param({"text": "a", "labels": {"z:cyclic": 1}}, "has a period", id="cyclic without period"),
    pytest.param({"text": "a", "labels": {"a/b/c": 1}}, "NAME or GROUP/NAME", id="two slashes"),
    pytest.param({"text": "a", "labels": {"z:ordered": 1.5}}, "must be a whole number", id="ordered fraction"),
    pytest.param({"text": "a", "labels": {"z:binary": 2}}, "is binary, so 2 must be", id="binary out of range"),
    pytest.param({"text": "a", "labels": {"x:ordered": 1}}, "written in two ways", id="two kinds of one name"),
]


@pytest.mark.parametrize(("line", "says"), BAD_LINES)
def test_bad_lines_are_explained(write, line, says):
    path = write(GOOD, line)
    with pytest.raises(UserError) as error:
        JsonLines(path)
    assert says in str(error.value)


def test_an_empty_file_is_refused(write):
    with pytest.raises(UserError, match="no document"):
        JsonLines(write(""))


def test_the_fingerprint_is_of_the_content(write):
    before = JsonLines(write(GOOD)).fingerprint()
    assert JsonLines(write(GOOD, name="corpus.jsonl")).fingerprint() == before
    assert JsonLines(write({**GOOD, "text": "abcd"})).fingerprint() != before


def test_the_example_in_the_guide_is_read_as_it_says(write):
    guide = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text(encoding="utf-8")
    example = guide.split("```json\n")[1].split("```")[0]
    dataset = JsonLines(write(example))
    kinds = {(spec.group, spec.name): spec.kind for spec in dataset.label_specs}
    assert kinds == {
        ("labels", "mood"): "categories",
        ("labels", "place"): "binary",
        ("labels", "entity"): "categories",
        ("labels", "hour"): "cyclic",
        ("syntax", "depth"): "ordered",
    }
    text = dataset.document(0).text
    assert [text[span.start : span.end] for span in dataset.labels(dataset.document(0))["entity"].spans] == [
        "Anna",
        "Rome",
    ]
