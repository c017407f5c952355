"""Numbers as text."""

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.report import numbers


def test_examples_in_the_docstrings():
    assert doctest.testmod(numbers).failed == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (True, "yes"), (0, "0"), (0.0, "0"), (-3, "−3"), (0.1, "0.1"), (99.999, "100"),
        (0.00012, "1.2×10⁻⁴"),
        (123456.7, "123\u202f457"), (1e9, "1×10⁹"), (-2.5e-9, "−2.5×10⁻⁹"), (float("inf"), "∞"), (float("-inf"), "−∞"),
    ],
)  # fmt: skip
def test_number(value, text):
    assert numbers.number(value) == text


@given(st.floats())
def test_any_float_is_written_and_short(value):
    assert 1 <= len(numbers.number(value)) <= 14


def test_interval_has_two_digits_of_its_width():
    assert numbers.interval(1.2981, 1.2768, 1.3194) == ("1.298", "1.277", "1.319")
    assert numbers.interval(4321.0, 4000.0, 4700.0) == ("4\u202f321", "4\u202f000", "4\u202f700")
    assert numbers.interval(1e-9, 0.0, 2e-9) == ("1×10⁻⁹", "0", "2×10⁻⁹")
    assert numbers.interval(float("nan"), 0.0, 1.0) == ("–", "0", "1")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        pytest.param([0.5, 0.98765], ["0.5000", "0.9877"], id="shares"),
        pytest.param([0.5, 1.0], ["0.5000", "1.0000"], id="a share of one looks like the others"),
        pytest.param([1.0, 20.0], ["1", "20"], id="whole"),
        pytest.param([12.345, 100.0], ["12.3", "100.0"], id="hundreds"),
        pytest.param([0.5, 1e-9], ["0.5", "1×10⁻⁹"], id="many sizes"),
        pytest.param([3, 1200], ["3", "1\u202f200"], id="integers"),
    ],
)
def test_column(values, texts):
    write = numbers.column(values)
    assert [write(value) for value in values] == texts
