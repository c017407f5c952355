"""Which sequences and positions a capture takes: samples, order, batches, positions."""

import numpy as np
import pytest

from workbench.capture_plan import LEAST_DOCUMENTS, Planner
from workbench.datasets.protocol import Dataset, Document, LabelSpec, Span, SpanLabel
from workbench.datasets.text import TextList
from workbench.errors import UserError
from workbench.subjects.sources import load_subject
from workbench.testing.tiny import save_tiny_decoder


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return load_subject(f"zoo:{save_tiny_decoder(tmp_path_factory.mktemp('tiny'))}", device="cpu")


class Letters(Dataset):
    """``abc…`` of different lengths; a binary label on every b, categories on c, and one of the document."""

    address, modality = "letters", "text"
    label_specs = (
        LabelSpec("b", "letters", "row", "binary"),
        LabelSpec("c", "letters", "row", "categories", ("first", "later")),
        LabelSpec("even", "documents", "document", "binary"),
    )

    def __init__(self, n_documents, length):
        self.n_documents, self.length = n_documents, length

    def __len__(self):
        return self.n_documents

    def document(self, index):
        text = ("abcd" * self.length)[: self.length + index % 3]
        return Document(f"doc{index}", text, fields={"index": np.int64(index)})

    def fingerprint(self):
        return "letters"

    def labels(self, document):
        text = document.text
        bs = [Span(i, i + 1, float(i != 1)) for i, letter in enumerate(text) if letter == "b"]
        cs = [Span(i, i + 1, float(i > 2)) for i, letter in enumerate(text) if letter == "c"]
        return {
            "b": SpanLabel(bs),
            "c": SpanLabel(cs, background=None),
            "even": float(document.fields["index"] % 2 == 0),
        }


def test_all_documents_come_in_order_and_sequences_by_length(subject):
    examples = Planner(subject, Letters(20, 30)).plan().examples
    assert examples.documents == tuple(f"doc{i}" for i in range(20))
    assert examples.document_fields[7] == {"index": 7}
    lengths = np.diff(examples.bounds)
    assert (np.diff(lengths) >= 0).all()
    assert lengths.max() == subject.n_context
    assert examples.n_rows == sum(n + -(-n // 15) for n in (30 + i % 3 for i in range(20)))  # with special tokens


def test_a_sample_has_exactly_the_rows_and_many_documents(subject):
    letters, rows = Letters(400, 300), 16 * LEAST_DOCUMENTS
    examples = Planner(subject, letters, seed=1).plan(rows=rows).examples
    assert examples.n_rows == rows
    assert len(examples.documents) >= LEAST_DOCUMENTS * 0.9
    per_document = np.bincount(examples.sequence_document, np.diff(examples.first_rows))
    assert per_document.max() < rows / LEAST_DOCUMENTS + subject.n_context
    windows = examples.sequence_window
    assert 5 < windows.mean() < 15  # from everywhere in a document, not from its beginning
    cut = [i for i in range(examples.n_sequences) if len(examples.positions_of(i)) < np.diff(examples.bounds)[i]]
    assert len(cut) <= 1


def test_a_sample_is_seeded(subject):
    digests = [Planner(subject, Letters(50, 100), seed=seed).plan(rows=200).examples.digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_a_few_long_documents_are_taken_whole_in_the_end(subject):
    one = Planner(subject, TextList(["abcd" * 100])).plan(rows=300).examples
    assert (one.n_rows, one.documents) == (300, ("0",))
    everything = Planner(subject, TextList(["abcd" * 100])).plan(rows=10_000).examples
    assert everything.n_rows == Planner(subject, TextList(["abcd" * 100])).plan().examples.n_rows


def test_a_context_length_makes_shorter_windows(subject):
    examples = Planner(subject, TextList(["abcdefgh"]), context_length=5).plan().examples
    assert np.diff(examples.bounds).tolist() == [5, 5]
    assert examples.special.sum() == 2


def test_batches_begin_at_the_same_places_wherever_one_goes_on(subject):
    plan = Planner(subject, Letters(10, 20)).plan()
    whole = list(plan.batches(3, 0))
    assert [s for batch in whole for s in batch] == list(range(plan.examples.n_sequences))
    for row in range(plan.examples.n_rows):
        left = list(plan.batches(3, row))
        assert left == whole[len(whole) - len(left) :]
        first = plan.examples.first_rows
        assert first[left[0].start] <= row < first[left[0].stop]
    assert list(plan.batches(None, 0)) == [range(plan.examples.n_sequences)]


def rows_of(subject, positions, n=4, length=20):
    examples = Planner(subject, Letters(n, length), positions).plan().examples
    letters = subject.decode(examples.ids[examples.selected].tolist())
    return examples, letters


def test_last(subject):
    examples, letters = rows_of(subject, "last")
    assert (np.diff(examples.first_rows) == 1).all()
    assert not examples.special[examples.selected].any()
    ends = [("abcd" * 9)[20 + i % 3 - 1] for i in range(4)]
    assert sorted(letters) == sorted([*ends, *"c" * 4])  # the first windows end with the 15th letter


def test_label(subject):
    examples, letters = rows_of(subject, "label:b")
    assert set(letters) == {"b"}
    assert len(letters) == 4 * 4 + 1  # the first b of each has the value 0; one document ends with a sixth
    assert set(rows_of(subject, "label:c")[1]) == {"c"}
    examples, _ = rows_of(subject, "label:even")
    assert examples.documents == ("doc0", "doc2")


def test_share(subject):
    examples, _ = rows_of(subject, "share:0.25", n=100)
    assert 0.2 < examples.selected.mean() < 0.3
    again, _ = rows_of(subject, "share:0.25", n=50)
    taken = {
        (examples.documents[d], w) for d, w in zip(examples.sequence_document, examples.sequence_window, strict=True)
    }
    fewer = {(again.documents[d], w) for d, w in zip(again.sequence_document, again.sequence_window, strict=True)}
    assert fewer < taken  # the choice depends on the document, not on what else is captured


def test_nothing_to_capture_is_an_error(subject):
    with pytest.raises(UserError, match="positions 'last' select nothing"):
        Planner(subject, TextList(["", ""]), "last").plan()
