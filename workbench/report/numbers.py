"""Numbers, times and sizes as a reader wants them: rounded sensibly, aligned, with a sign for what is undefined."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

UNDEFINED = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_THIN_SPACE = "\N{NARROW NO-BREAK SPACE}"


def number(value: Any, digits: int = 4) -> str:
    """Write one number.

    Parameters
    ----------
    value : number, bool or None
        None and NaN are undefined.
    digits : int
        Significant digits of a float; integers are written in full.

    Returns
    -------
    str

    Examples
    --------
    >>> [number(value) for value in (0.123456, 1234567, 2.5e-7, float("nan"), 12.0)]
    ['0.1235', '1\\u202f234\\u202f567', '2.5×10⁻⁷', '–', '12']
    """
    if value is None or isinstance(value, bool):
        return UNDEFINED if value is None else "yes" if value else "no"
    if isinstance(value, int):
        return _grouped(f"{value:,}")
    value = float(value)
    if not math.isfinite(value):
        return UNDEFINED if math.isnan(value) else "∞" if value > 0 else "−∞"
    if value and not 1e-3 <= abs(value) < 1e6:
        return _scientific(value, digits)
    decimals = max(0, digits - 1 - _exponent(value))
    text = f"{value:,.{decimals}f}"
    return _grouped(text.rstrip("0").rstrip(".") if "." in text else text)


def interval(value: float, lo: float, hi: float) -> tuple[str, str, str]:
    """Write a value and the ends of its interval to the same decimals, two significant digits of the interval's width.

    Examples
    --------
    >>> interval(0.93123, 0.91456, 0.94789)
    ('0.931', '0.915', '0.948')
    """
    width = hi - lo
    ends = (value, lo, hi)
    if not all(map(math.isfinite, ends)) or width <= 0 or not 1e-3 <= max(map(abs, ends)) < 1e6:
        return number(value), number(lo), number(hi)
    decimals = min(6, max(0, 1 - _exponent(width)))
    texts = [_grouped(f"{end:,.{decimals}f}") for end in ends]
    return texts[0], texts[1], texts[2]


def column(values: Sequence[Any], digits: int = 4) -> Callable[[Any], str]:
    """Choose one way to write all numbers of a table's column, so that they align.

    Parameters
    ----------
    values : sequence of numbers
        The column.
    digits : int
        Significant digits of the largest.

    Returns
    -------
    callable
        From a number to text.
    """
    sizes = [abs(value) for value in values if isinstance(value, float) and math.isfinite(value) and value]
    if not sizes or all(size.is_integer() for size in sizes):
        return lambda value: number(int(value) if isinstance(value, float) and value.is_integer() else value)
    largest, smallest = max(sizes), min(sizes)
    if largest >= 1e6 or largest < 1e-3 or smallest < 1e-5 * largest:
        return lambda value: number(value, digits - 1)
    # 0.98 and 1.02 get the same decimals, so that columns of shares and of their intervals' ends look alike
    decimals = digits if 0.1 <= largest < 2 else max(0, digits - 1 - _exponent(largest))
    return lambda value: _grouped(f"{value:,.{decimals}f}") if math.isfinite(value) else number(value)


def duration(seconds: float) -> str:
    """Write a length of time.

    Examples
    --------
    >>> [duration(seconds) for seconds in (0.25, 42.7, 3725)]
    ['0.25 s', '42.7 s', '1 h 2 min']
    """
    if seconds < 60:
        return f"{number(seconds, 3)} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(text: str) -> str:
    """Write an ISO time for people, in UTC; another text stays as it is.

    Examples
    --------
    >>> moment("2026-03-01T14:05:09+01:00")
    '1 March 2026, 13:05 UTC'
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    time = time.astimezone(UTC) if time.tzinfo else time
    return f"{time.day} {time:%B %Y, %H:%M}" + (" UTC" if time.tzinfo else "")


def size(n_bytes: int) -> str:
    """Write a number of bytes.

    Examples
    --------
    >>> size(1_500_000)
    '1.5 MB'
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= scale:
            return f"{number(n_bytes / scale, 3)} {unit}"
    return f"{n_bytes} bytes"


def _exponent(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _scientific(value: float, digits: int) -> str:
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa.replace('-', '−')}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def _grouped(text: str) -> str:
    return text.replace(",", _THIN_SPACE).replace("-", "−")
