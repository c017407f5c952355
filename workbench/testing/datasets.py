"""The conformance suite of datasets: a test class to inherit from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest

import workbench as wb
from workbench.datasets.protocol import Dataset, Document, Kind, LabelSpec, Level, SpanLabel
from workbench.errors import UserError
from workbench.plugin import API
from workbench.registry import registry
from workbench.testing.declared import imports_of

SHOWN = 200  # documents that are looked at


class DatasetConformance:
    """What must hold for every dataset that a package offers.

    A dataset's test inherits from this class and says how the dataset is addressed::

        from workbench.testing import DatasetConformance

        class TestPoems(DatasetConformance):
            address = "poems"

    Attributes
    ----------
    address : str
        As on the command line; or override `load`.
    model, hook_point : str
        Subject and hook point of a small capture, to see the labels arrive in a store.
    """

    address: ClassVar[str]
    model: ClassVar[str] = "zoo:calendar"
    hook_point: ClassVar[str] = "hook_embed"
    slow_checks: ClassVar[frozenset[str]] = frozenset({"test_its_labels_arrive_in_a_store"})

    def load(self) -> Dataset:
        """Open the dataset anew."""
        dataset: Dataset = wb.load_dataset(self.address)
        return dataset

    @pytest.fixture
    def dataset(self) -> Dataset:
        """Return the dataset."""
        return self.load()

    def test_its_source_is_registered(self) -> None:
        """The part of the address before the colon is a source of an installed package, written for this interface."""
        name, found = self.address.partition(":")[0], registry()
        assert name in found.datasets, f"no package offers {name!r}; broken: {found.broken}"
        source = found.datasets[name].item
        assert source.help.strip(), f"{name} has no help"
        assert "\n" not in source.help, f"help {source.help!r}: must be one line"
        assert source.api == API

    def test_listing_it_imports_nothing_heavy(self) -> None:
        """Its module is imported whenever datasets are listed."""
        offer = registry().datasets[self.address.partition(":")[0]]
        module = getattr(offer.item.load, "__module__", "")
        assert not imports_of(module), f"importing {module} imports {', '.join(imports_of(module))}"

    def test_documents_are_named_once_and_stay_the_same(self, dataset: Dataset) -> None:
        """Each name is unique, and a document read again, from a dataset opened again, is equal."""
        assert len(dataset), f"{dataset.address} holds no document"
        names = [document.name for document in documents(dataset)]
        assert len(set(names)) == len(names), f"names occur twice: {sorted({n for n in names if names.count(n) > 1})}"
        again = self.load()
        assert len(again) == len(dataset)
        for index in {0, len(dataset) // 2, len(dataset) - 1}:
            assert dataset.document(index) == again.document(index), f"document {index} is another one the second time"

    def test_documents_hold_what_the_modality_says(self, dataset: Dataset) -> None:
        """Text, or the path of an image; and plain fields."""
        assert dataset.modality in ("text", "vision")
        for document in documents(dataset):
            assert document.text is None or document.image is None, f"{document.name} holds both a text and an image"
            if dataset.modality == "text":
                assert document.text, f"{document.name} holds no text"
            else:
                assert document.image is not None, f"{document.name} holds no image"
                assert document.image.is_file(), f"{document.name}: there is no file {document.image}"
            fields = dict(document.fields)
            assert json.loads(json.dumps(fields)) == fields, f"{document.name} has fields that are no plain values"

    def test_the_fingerprint_stays_the_same(self, dataset: Dataset) -> None:
        """It decides the identity of every store that is captured from the dataset."""
        assert dataset.fingerprint()
        assert isinstance(dataset.fingerprint(), str)
        assert self.load().fingerprint() == dataset.fingerprint() == dataset.fingerprint()

    def test_its_labels_are_explained(self, dataset: Dataset) -> None:
        """Each has a name of its own, a known level and kind, and says what it means."""
        names = [spec.name for spec in dataset.label_specs]
        assert len(set(names)) == len(names), f"labels are named twice: {names}"
        for spec in dataset.label_specs:
            assert spec.level in get_args(Level), f"{spec.name}: level {spec.level!r}"
            assert spec.kind in get_args(Kind), f"{spec.name}: kind {spec.kind!r}"
            assert spec.group, f"{spec.name} has no group"
            assert spec.description.strip(), f"{spec.name} has no description"
            assert (spec.kind != "cyclic") or (spec.period or 0) > 0, f"{spec.name} is cyclic, and has no period"
            assert (spec.kind != "categories") or spec.categories, f"{spec.name} does not name its categories"

    def test_labels_have_values_that_their_kind_allows(self, dataset: Dataset) -> None:
        """Every value is of a declared label, of its level, of its kind; spans lie within the text."""
        specs = {spec.name: spec for spec in dataset.label_specs}
        for document in documents(dataset):
            for name, value in dataset.labels(document).items():
                assert name in specs, f"{document.name} has a label {name!r} that is not among label_specs"
                spec = specs[name]
                assert isinstance(value, SpanLabel) == (spec.level == "row"), f"{name} of {document.name}: {value!r}"
                for number in values_of(value, document):
                    assert allowed(spec, number), f"{name} of {document.name}: {number} is no value of {spec.kind}"

    def test_an_unknown_label_is_explained(self, dataset: Dataset) -> None:
        """The nearest labels are named."""
        with pytest.raises(UserError, match="no label 'no_such_label'"):
            dataset.label_spec("no_such_label")

    def test_its_labels_arrive_in_a_store(self, tmp_path: Path) -> None:
        """A small capture holds documents in order, and every label where it is defined."""
        store = wb.capture(
            self.model, data=self.address, hooks=self.hook_point, rows=300, out=tmp_path / "acts", device="cpu"
        )
        dataset = self.load()
        names = {document.name for document in map(dataset.document, range(len(dataset)))}
        assert set(store.documents) <= names, "the store has documents that the dataset has not"
        assert set(store.labels) == {spec.name for spec in dataset.label_specs}
        assert store.manifest["dataset"]["fingerprint"] == dataset.fingerprint()


def documents(dataset: Dataset) -> Iterator[Document]:
    """Yield the first documents."""
    return islice(map(dataset.document, range(len(dataset))), SHOWN)


def values_of(value: Any, document: Document) -> Iterator[float]:
    """Yield a label's numbers on a document; spans outside its text are an error."""
    if value is None:
        return
    if not isinstance(value, SpanLabel):
        yield float(value)
        return
    length = len(document.text or "")
    for start, end, number, *_ in np.asarray(value.spans, dtype=float).reshape(-1, 4).tolist():
        assert 0 <= start < end <= length, f"{document.name}: span {start}…{end} of a text of {length} characters"
        yield number
    if value.background is not None:
        yield float(value.background)


def allowed(spec: LabelSpec, number: float) -> bool:
    """True if a number is a value of a label's kind."""
    if spec.kind == "binary":
        return number in (0, 1)
    if spec.kind == "categories":
        return number.is_integer() and 0 <= number < len(spec.categories)
    return np.isfinite(number) and (spec.kind != "ordered" or number.is_integer())
