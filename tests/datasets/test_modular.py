import numpy as np
import pytest

from workbench.datasets.alignment import Aligner
from workbench.datasets.loading import load_dataset
from workbench.datasets.modular import Modular
from workbench.datasets.modular_text import PRIME, Sum, shown_sums, sums


def test_every_sum_is_there_once_with_its_answer():
    dataset = load_dataset("modular")
    assert isinstance(dataset, Modular)
    found = {(d.fields["a"], d.fields["b"]): d for d in map(dataset.document, range(len(dataset)))}
    assert len(found) == len(dataset) == PRIME**2
    assert found[40, 30].text == "40 + 30 ="
    assert found[40, 30].fields["answer"] == str((40 + 30) % PRIME) == "11"
    assert dataset.fingerprint() == Modular().fingerprint() != Modular(seed=1).fingerprint()


def test_both_orders_of_two_numbers_are_shown_or_neither():
    shown = shown_sums()
    assert len(shown) / PRIME**2 == pytest.approx(0.7, abs=0.01)
    assert all((Sum(a, b) in shown) == (Sum(b, a) in shown) for a, b in sums())
    assert shown == shown_sums() != shown_sums(1)


def test_labels_fall_on_their_tokens():
    dataset = Modular()
    document = next(d for d in map(dataset.document, range(len(dataset))) if d.name == "7+58")
    offsets = np.array([[0, 1], [2, 3], [4, 6], [7, 8]])  # 7 + 58 =
    align = Aligner(document.text, [offsets])
    labels = dataset.labels(document)
    held = {}
    for name in ("number", "sum_operand", "sum_other", "sum_answer"):
        values, defined = align(labels[name])
        held[name] = [int(v) if there else None for v, there in zip(values, defined, strict=True)]
    assert held["number"] == [7, None, 58, None]
    assert held["sum_operand"] == [7, None, None, None]
    assert held["sum_other"] == [None, None, 58, None]
    assert held["sum_answer"] == [None, None, None, (7 + 58) % PRIME]
    assert labels["held_out"] == float(Sum(7, 58) not in shown_sums())
