"""Spans on tokens: the vectorised way against the definition, spelled out."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.datasets.alignment import Aligner
from workbench.datasets.protocol import Span, SpanLabel
from workbench.errors import UserError


def by_definition(text, windows, label):
    values, defined = [], []
    for offsets in windows:
        for start, _ in offsets:
            values.append(np.nan if start < 0 or label.background is None else label.background)
            defined.append(bool(start >= 0 and label.background is not None))
    for span in label.spans:
        row, taken = 0, set()
        for offsets in windows:
            for start, end in offsets:
                for character in range(max(start, span.start, 0), min(end, span.end)):
                    first = next((c for c in range(span.start, span.end) if not text[c].isspace()), None)
                    if span.every or (character == first and first not in taken):
                        values[row], defined[row] = span.value, True
                        if not span.every:
                            taken.add(first)
                        break
                row += 1
    return np.array(values), np.array(defined, bool)


@st.composite
def tokenized_texts(draw):
    """A text cut into tokens that leave some characters out or share one, in windows with a special token first."""
    text = draw(st.text(alphabet="ab \n\u3000é𝄞", max_size=20))
    tokens, place = [], 0
    while place < len(text):
        length = draw(st.integers(0, 3))
        repeats = draw(st.integers(1, 2)) if length == 1 else 1  # bytes of one character
        tokens += [(place, min(place + length, len(text)))] * repeats
        place += length + draw(st.integers(0, 1)) + (length == 0)
    cut = draw(st.integers(0, len(tokens)))
    windows = [np.array([(-1, -1), *part], np.int64) for part in (tokens[:cut], tokens[cut:])]
    places = st.integers(0, len(text))
    span = st.builds(
        lambda a, b, v, e: Span(min(a, b), max(a, b), v, e), places, places, st.integers(1, 4), st.booleans()
    )
    label = SpanLabel(draw(st.lists(span, max_size=6)), draw(st.sampled_from([None, 0.0, 7.0])))
    return text, windows, label


@given(tokenized_texts())
def test_spans_fall_where_the_definition_says(case):
    text, windows, label = case
    values, defined = Aligner(text, windows)(label)
    want, want_defined = by_definition(text, windows, label)
    np.testing.assert_array_equal(defined, want_defined)
    np.testing.assert_array_equal(values, want)


def test_a_span_falls_on_the_token_of_its_first_visible_character():
    offsets = np.array([(-1, -1), (0, 3), (3, 8), (8, 9)])  # "def", " spam", "("
    values, defined = Aligner("def spam(", [offsets])(SpanLabel([Span(3, 9, 1.0)]))
    assert values[1:].tolist() == [0, 1, 0]
    assert defined.tolist() == [False, True, True, True]
    every, _ = Aligner("def spam(", [offsets])(SpanLabel([Span(3, 9, 1.0, every=True)]))
    assert every[1:].tolist() == [0, 1, 1]


def test_spans_may_be_an_array():
    align = Aligner("abcd", [np.array([(0, 2), (2, 4)])])
    spans = [Span(0, 1, 2.0), Span(1, 4, 3.0, every=True)]
    for got, want in zip(align(SpanLabel(np.array(spans))), align(SpanLabel(spans)), strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_later_span_wins():
    offsets = np.array([(0, 4)])
    values, _ = Aligner("abcd", [offsets])(SpanLabel([Span(0, 4, 1.0), Span(1, 2, 2.0)]))
    assert values.tolist() == [2]


def test_overlapping_windows_each_get_the_span():
    windows = [np.array([(0, 1), (1, 2), (2, 3)]), np.array([(1, 2), (2, 3), (3, 4)])]
    values, _ = Aligner("abcd", windows)(SpanLabel([Span(1, 2, 5.0)]))
    assert values.tolist() == [0, 5, 0, 5, 0, 0]


def test_a_span_of_space_falls_nowhere_unless_it_asks_for_every_token():
    offsets = np.array([(0, 1), (1, 3)])
    align = Aligner("a  ", [offsets])
    assert align(SpanLabel([Span(1, 3, 1.0)]))[0].tolist() == [0, 0]
    assert align(SpanLabel([Span(1, 3, 1.0, every=True)]))[0].tolist() == [0, 1]


@pytest.mark.parametrize("span", [Span(-1, 1, 1.0), Span(2, 1, 1.0), Span(0, 4, 1.0)])
def test_a_span_outside_the_text_is_refused(span):
    with pytest.raises(UserError, match="the text has 3 characters"):
        Aligner("abc", [np.array([(0, 3)])])(SpanLabel([span]))


def test_no_window_and_no_span():
    values, defined = Aligner("abc", [])(SpanLabel([Span(0, 1, 1.0)]))
    assert len(values) == len(defined) == 0
    values, defined = Aligner("abc", [np.array([(0, 3)])])(SpanLabel([], background=None))
    assert not defined.any()


@pytest.mark.slow
def test_two_hundred_thousand_tokens_and_25_labels_take_seconds():
    n = 200_000
    text = "spam " * n
    offsets = np.stack([np.arange(n) * 5, np.arange(n) * 5 + 5], axis=1)
    label = SpanLabel([Span(5 * i, 5 * i + 4, 1.0, i % 2 == 0) for i in range(n)])
    align = Aligner(text, np.split(offsets, n // 200))
    start = time.perf_counter()
    for _ in range(25):
        align(label)
    assert time.perf_counter() - start < 10
