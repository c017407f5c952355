"""Texts to windows and back with a ``tokenizer.json``; needs the `tokenizers` library alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tokenizers import Tokenizer

from workbench.errors import UserError
from workbench.subjects.protocol import TokenWindow


class ZooText:
    """A tokenizer that starts each text with one special token, may end it with others, and a context length.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer
        Its post-processor adds the special tokens.
    n_context : int
        Longest sequence of its subject, those tokens included.
    """

    def __init__(self, tokenizer: Any, n_context: int) -> None:
        self.tokenizer, self.n_context = tokenizer, n_context
        self.begin, *self.end = tokenizer.encode("").ids

    @classmethod
    def load(cls, path: Path, n_context: int) -> ZooText:
        """Read a ``tokenizer.json``."""
        return cls(Tokenizer.from_file(str(path)), n_context)

    def windows(self, text: str, n_context: int | None = None) -> list[TokenWindow]:
        """Cut a text into windows; see `Subject.windows`. It is tokenized once, so that a cut changes no token."""
        longest = self.n_context if n_context is None else n_context
        room = longest - 1 - len(self.end)
        if room < 1 or longest > self.n_context:
            least = 2 + len(self.end)
            raise UserError(f"context length {longest}: must be between {least} and {self.n_context} tokens")
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        tokens = np.array(encoding.ids, np.int64)
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        starts = range(0, max(len(tokens), 1), room)
        return [self.window(tokens[i : i + room], offsets[i : i + room]) for i in starts]

    def window(self, tokens: np.ndarray, offsets: np.ndarray) -> TokenWindow:
        """Return ordinary tokens [pos] and their offsets [pos, 2] as a window, special tokens around them."""
        n_tokens, after = len(tokens), len(self.end)
        return TokenWindow(
            tokens=np.concatenate([[self.begin], tokens, np.array(self.end, np.int64)]),
            special=np.array([True] + [False] * n_tokens + [True] * after),
            offsets=np.concatenate([[[-1, -1]], offsets, np.full((after, 2), -1, np.int64)]),
        )

    def example(self, example: Any) -> TokenWindow:
        """Return a text, a window or token ids as one window; ids are taken as they are, special ones flagged."""
        if isinstance(example, TokenWindow):
            return example
        if isinstance(example, str):
            windows = self.windows(example)
            if len(windows) > 1:
                n_tokens = sum(int((~window.special).sum()) for window in windows) + 1 + len(self.end)
                raise UserError(
                    f"text {example[:40]!r} has {n_tokens} tokens: one sequence takes {self.n_context}; "
                    "cut it with subject.windows"
                )
            return windows[0]
        ids = np.array([int(token) for token in example], np.int64)
        special = (np.arange(len(ids)) == 0) & (ids == self.begin)
        if self.end and ids[-len(self.end) :].tolist() == self.end:
            special[-len(self.end) :] = True
        return TokenWindow(ids, special, np.full((len(ids), 2), -1, np.int64))

    def decode(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token; a part of a character reads as the replacement character."""
        return self.tokenizer.decode_batch([[int(token)] for token in tokens], skip_special_tokens=False)  # type: ignore[no-any-return]

    def fingerprint(self) -> str:
        """Return a hash of the tokenizer's definition."""
        return xxhash.xxh3_128_hexdigest(self.tokenizer.to_str().encode())
