"""From labels on characters to labels on tokens.

A span falls on the token that holds its first non-space character, or on every token that it touches, as it says
itself. Where several fall on one token, the last in the list wins. Special tokens carry no label.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from workbench.datasets.protocol import Span, SpanLabel
from workbench.errors import UserError

LAST_SPACE = 0x3000  # no character after this one counts as space
IS_SPACE = np.array([chr(code).isspace() for code in range(LAST_SPACE + 2)])


class Aligner:
    """Puts the labels of one document on its tokens.

    Parameters
    ----------
    text : str
        Of the document.
    offsets : sequence of int arrays [pos, 2]
        Start and end character of each token, one array per window of the document; -1, -1 at special tokens.
    """

    def __init__(self, text: str, offsets: Sequence[NDArray[np.int64]]) -> None:
        self.text = text
        lengths = [len(window) for window in offsets]
        starts, ends = np.concatenate([*offsets, np.empty((0, 2), np.int64)]).T
        self.n_tokens = int(sum(lengths))
        self.is_text = starts >= 0
        tokens = np.flatnonzero(self.is_text & (ends > starts))
        window = np.repeat(np.arange(len(lengths)), lengths)[tokens]
        self.groups = [Group(tokens, starts[tokens], ends[tokens])]
        if not self.groups[0].is_ordered:  # windows overlap, or their tokens are out of order: a span falls in each
            self.groups = [Group(t, starts[t], ends[t]) for t in (tokens[window == w] for w in range(len(lengths)))]

    def __call__(self, label: SpanLabel) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the value of each token of all windows, one after the other, and where it is defined.

        Raises
        ------
        UserError
            For a span that ends before it starts or lies outside the text.
        """
        background = np.nan if label.background is None else label.background
        values = np.full(self.n_tokens, background, np.float64)
        defined = self.is_text & (label.background is not None)
        flat = as_array(label.spans)
        starts, ends, every = flat[:, 0].astype(np.int64), flat[:, 1].astype(np.int64), flat[:, 3] != 0
        wrong = np.flatnonzero((starts < 0) | (ends < starts) | (ends > len(self.text)))
        if len(wrong):
            start, end = starts[wrong[0]], ends[wrong[0]]
            raise UserError(f"span from {start} to {end}: the text has {len(self.text)} characters")
        visible = self._next_visible[starts]
        kept = np.where(every, ends > starts, ends > visible)
        starts, ends = np.where(every, starts, visible)[kept], np.where(every, ends, visible + 1)[kept]
        for group in self.groups:
            which, tokens = group.touched(starts, ends, every[kept])
            values[tokens] = flat[kept, 2][which]  # of repeated indices the last assignment stays
            defined[tokens] = ~np.isnan(values[tokens])
        values[~defined] = np.nan
        return values, defined

    @cached_property
    def _next_visible(self) -> NDArray[np.int64]:
        """Position of the first non-space character at or after each one; the text's length where none is left."""
        codes = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), "<u4")
        positions = np.arange(len(codes) + 1)
        positions[:-1][IS_SPACE[np.minimum(codes, LAST_SPACE + 1)]] = len(codes)
        return np.minimum.accumulate(positions[::-1])[::-1]


def as_array(spans: Sequence[Span] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return spans as an array [span, 4] of start, end, value, every."""
    if isinstance(spans, np.ndarray):
        return spans.reshape(-1, 4)
    return np.fromiter(chain.from_iterable(spans), np.float64, count=4 * len(spans)).reshape(-1, 4)


class Group:
    """Tokens in the order of the text, so that those of a span are found by bisection."""

    def __init__(self, tokens: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        self.is_ordered = bool((np.diff(starts) >= 0).all() and (np.diff(ends) >= 0).all())
        order = np.argsort(starts, kind="stable")
        self.tokens, self.starts, self.ends = tokens[order], starts[order], ends[order]

    def touched(
        self, starts: NDArray[np.int64], ends: NDArray[np.int64], every: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return pairs (span, token) that touch, spans in order; only the first token of a span that is not `every`."""
        low = np.searchsorted(np.maximum.accumulate(self.ends), starts, side="right")
        high = np.searchsorted(self.starts, ends, side="left")
        lengths = np.maximum(high - low, 0)
        spans = np.repeat(np.arange(len(starts)), lengths)
        at = low[spans] + np.arange(len(spans)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        touching = self.ends[at] > starts[spans]
        spans, at = spans[touching], at[touching]
        is_first = np.diff(spans, prepend=-1) > 0
        wanted = every[spans] | is_first
        return spans[wanted], self.tokens[at[wanted]]
