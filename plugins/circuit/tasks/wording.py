"""Texts as a subject's tokens: whole prompts, words of one token, and where in a prompt a word is."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from importlib.resources import files

import numpy as np

from workbench.errors import UserError
from workbench.subjects.protocol import Subject

ANCHOR = "The"  # what words are tried after: the first word of a text may be split differently


@functools.cache
def word_list(kind: str) -> tuple[str, ...]:
    """Return the words from which prompts are made: ``names``, ``places``, ``objects``, ``events``, ``arguments``."""
    shelf = files("workbench.plugins.circuit.tasks") / "words.json"
    return tuple(json.loads(shelf.read_text(encoding="utf-8"))[kind])


class Wording:
    """The tokenizer of a subject, as tasks need it.

    Parameters
    ----------
    subject : Subject
        A language model; texts begin as its tokenizer begins them, and what it puts at their end is left out.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._ids: dict[str, tuple[list[int], np.ndarray]] = {}

    def tokens(self, text: str) -> list[int]:
        """Return a text's tokens.

        Raises
        ------
        UserError
            If the text is longer than the subject's context.
        """
        return self._encoded(text)[0]

    def _encoded(self, text: str) -> tuple[list[int], np.ndarray]:
        if text not in self._ids:
            windows = self.subject.windows(text)
            if len(windows) != 1:
                raise UserError(
                    f"prompt {text[:60]!r} is longer than the {self.subject.n_context} tokens that "
                    f"{self.subject.address} takes"
                )
            window = windows[0]
            real = np.flatnonzero(~window.special)
            end = int(real[-1]) + 1 if len(real) else len(window.tokens)
            self._ids[text] = window.tokens[:end].tolist(), window.offsets[:end]
        return self._ids[text]

    def follower(self, text: str, word: str) -> int | None:
        """Return the one token that `word` adds to a text; None if it is not one, or changes those before it."""
        before, after = self.tokens(text), self.tokens(text + word)
        return after[-1] if len(after) == len(before) + 1 and after[:-1] == before else None

    def one_token(self, words: Iterable[str]) -> dict[str, int]:
        """Return the words, each with a space before it, that are one token, with their tokens; none twice."""
        found: dict[str, int] = {}
        for word in words:
            token = self.follower(ANCHOR, " " + word)
            known = (
                token is not None and self.subject.decode([token])[0].strip() == word
            )  # not a token for unknown words
            if token is not None and known and token not in found.values():
                found[word] = token
        return found

    def enough(self, words: Iterable[str], least: int, what: str, task: str) -> list[str]:
        """Return the words that are one token each, refusing if they are too few.

        Raises
        ------
        UserError
            Naming the task, how many fit, and what else could be run.
        """
        words = list(words)
        fitting = list(self.one_token(words))
        if len(fitting) < least:
            raise UserError(
                f"task {task} needs {least} {what} of one token each, and for the tokenizer of {self.subject.address} "
                f"{len(fitting)} of {len(words)} are: another subject, or the task induction, which needs no words"
            )
        return fitting

    def place(self, text: str, start: int) -> int:
        """Return the position of the token that holds the character at `start`."""
        offsets = self._encoded(text)[1]
        return int(np.flatnonzero((offsets[:, 0] <= start) & (start < offsets[:, 1]))[-1])


def special_prefix(subject: Subject) -> list[int]:
    """Return the special tokens with which a text begins; none for a subject without a tokenizer."""
    if subject.tokenizer is None:
        return []
    window = subject.windows(ANCHOR)[0]
    return [int(token) for token in window.tokens[: int(np.argmin(window.special))]]


def ordinary_tokens(subject: Subject) -> np.ndarray:
    """Return the ids of a subject's vocabulary that are no special tokens, int64."""
    n_vocab = min(subject.weights("W_E").shape[0], subject.weights("W_U").shape[-1])
    special = {*special_prefix(subject), *getattr(subject.tokenizer, "all_special_ids", ())}
    return np.setdiff1d(np.arange(n_vocab), sorted(special))
