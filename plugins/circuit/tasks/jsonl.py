"""Pairs of one's own: a line of JSON for each example.

```json
{"clean": "Ann met Tom. Tom thanked", "corrupted": "Ann met Tom. Ann thanked", "answer": [" Ann"], "wrong": [" Tom"]}
```

Prompts are texts or lists of token ids, answers lists of either (one alone needs no list). ``negative`` is optional: a
prompt for the discrete SAE on which there is nothing to solve; without it the corrupted prompts serve.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from workbench.datasets.files import hash_files
from workbench.datasets.jsonl import read_lines
from workbench.errors import UserError, nearest
from workbench.plugins.circuit.head_outputs import Tokens
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.tasks.task import Prompts, Task
from workbench.plugins.circuit.tasks.wording import Wording
from workbench.subjects.protocol import Subject

KEYS = ("clean", "corrupted", "answer", "wrong", "negative")
Prompt = str | list[int]


class PairsFile(Task):
    """Pairs from a file of JSON lines; examples are numbered from 1, as lines are.

    Parameters
    ----------
    rest : str
        The file.

    Raises
    ------
    UserError
        For a file that is not there or holds no example, a line that is not JSON, or a field that is missing or of
        another form; the message names file and line.
    """

    name = "pairs"

    def __init__(self, rest: str) -> None:
        super().__init__()
        self.path, self.address = Path(rest).expanduser(), f"pairs:{rest}"
        if not self.path.is_file():
            raise UserError(f"{self.path}: there is no such file of pairs (JSON lines with {', '.join(KEYS[:4])})")
        self.records = [(str(line), checked(record, str(line))) for line, record in read_lines(self.path)]
        if not self.records:
            raise UserError(f'{self.path}: there is no example in it; a line is {{"clean": …, "corrupted": …}}')

    def contents(self) -> Any:
        """See `Task.contents`."""
        return hash_files([("", self.path)], {})

    def make(self, subject: Subject, n: int, rng: np.random.Generator) -> Prompts:
        """Take n of the examples, or all if there are fewer.

        Raises
        ------
        UserError
            For a clean and a corrupted prompt of unequal length, an answer that is not one token after its prompt, or
            a token id that the subject does not have; the message names file and line.
        """
        wording = Wording(subject)
        n_vocab = int(subject.weights("W_U").shape[-1])
        chosen = [self.records[at] for at in np.sort(rng.permutation(len(self.records))[:n])]
        clean, corrupted, negatives = [], [], []
        answer: list[list[int]] = []
        wrong: list[list[int]] = []
        for where, record in chosen:
            first, second = (ids_of(record[key], wording, n_vocab, f"{where}, {key}") for key in ("clean", "corrupted"))
            if len(first) != len(second):
                raise UserError(
                    f"{where}: the clean prompt has {len(first)} tokens and the corrupted one {len(second)}; they must "
                    "align token by token"
                )
            clean.append(first)
            corrupted.append(second)
            for found, key in ((answer, "answer"), (wrong, "wrong")):
                found.append(
                    [answer_of(each, record["clean"], wording, n_vocab, f"{where}, {key}") for each in record[key]]
                )
            given = record["negative"]
            negatives.append(second if given is None else ids_of(given, wording, n_vocab, f"{where}, negative"))
        metric = "logit-difference" if any(answer) else "kl"
        pairs = Pairs.of(clean, corrupted, answer, wrong, metric=metric)
        own = any(record["negative"] is not None for _, record in chosen)
        which = "its own" if own else "the corrupted prompts"
        about = f"Pairs of {self.path.name}. Negatives of the discrete SAE: {which}."
        return Prompts(pairs, Tokens.of(negatives), about)


def checked(record: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a record with all fields in one form, refusing others; `where` names file and line."""
    if unknown := [key for key in record if key not in (*KEYS, "name")]:
        raise UserError(f"{where}: field {unknown[0]!r} is unknown; nearest: {nearest(unknown[0], KEYS)}")
    found: dict[str, Any] = {"negative": record.get("negative")}
    for key in ("clean", "corrupted", "negative"):
        value = record.get(key)
        if value is None and key == "negative":
            continue
        if not (is_text(value) or is_ids(value)):
            raise UserError(f"{where}: {key} is {value!r}, where a text or a list of token ids is wanted")
        found[key] = value
    for key in ("answer", "wrong"):
        value = record.get(key, [])
        values = value if isinstance(value, list) else [value]
        for each in values:
            if not (is_text(each) or is_ids([each])):
                raise UserError(f"{where}: {key} has {each!r}, where a text or a token id is wanted")
        found[key] = values
    return found


def is_text(value: Any) -> bool:
    """Tell whether something is a text that is not empty."""
    return isinstance(value, str) and bool(value)


def is_ids(value: Any) -> bool:
    """Tell whether something is a list of whole numbers from 0 that is not empty."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in value)
    )


def ids_of(prompt: Prompt, wording: Wording, n_vocab: int, where: str) -> list[int]:
    """Return a prompt's tokens."""
    if isinstance(prompt, str):
        return wording.tokens(prompt)
    for token in prompt:
        if token >= n_vocab:
            raise UserError(f"{where}: token id {token}; {wording.subject.address} has ids 0 to {n_vocab - 1}")
    if len(prompt) > wording.subject.n_context:
        raise UserError(f"{where}: {len(prompt)} tokens; {wording.subject.address} takes {wording.subject.n_context}")
    return list(prompt)


def answer_of(answer: str | int, prompt: Prompt, wording: Wording, n_vocab: int, where: str) -> int:
    """Return an answer's token, which a text must be right after its prompt."""
    if isinstance(answer, int):
        return ids_of([answer], wording, n_vocab, where)[0]
    if not isinstance(prompt, str):
        raise UserError(f"{where}: {answer!r} is a text, and its prompt is token ids; give the answer's id")
    token = wording.follower(prompt, answer)
    if token is None:
        added = len(wording.tokens(prompt + answer)) - len(wording.tokens(prompt))
        hint = "" if answer.startswith(" ") else " (does it need a space in front?)"
        raise UserError(f"{where}: {answer!r} is {added} tokens after its prompt, where one is wanted{hint}")
    return token
