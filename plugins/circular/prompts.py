"""Prompts of a store that ask for a sum on a circle: where the operand stands, where the answer is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import UserError, nearest
from workbench.plugins.circular.features import Cyclic
from workbench.splice import stored_examples
from workbench.subjects.protocol import Subject, TokenWindow

if TYPE_CHECKING:
    from workbench.cache import Store
    from workbench.context import Context

LEAST_PROMPTS = 20
ONE_TOKEN = 0.9  # share of a class's rows that must have the same token


@dataclass(frozen=True)
class Prompts:
    """Sequences of a store with one operand and one answer.

    Attributes
    ----------
    name : str
        Of the operand's label.
    words : tuple of str
        Names of the classes.
    tokens : np.ndarray
        [classes] token id of each.
    windows : list of TokenWindow
        The sequences.
    operand_row, answer_row : np.ndarray
        [n] rows of the store: the operand's, and the one where the answer is predicted.
    operand_at, answer_at : np.ndarray
        [n] their positions in the sequence.
    a, c : np.ndarray
        [n] class of the operand and of the answer.
    group : np.ndarray
        [n] which problem, from 0: one operand and one difference between answer and operand. The unit of intervals.
    scoring : np.ndarray
        [n] whether it is scored; the others serve to fit and to choose.
    held_out : bool
        Whether those scored are the documents that the dataset flags as held out from the subject.
    """

    name: str
    words: tuple[str, ...]
    tokens: np.ndarray
    windows: list[TokenWindow]
    operand_row: np.ndarray
    answer_row: np.ndarray
    operand_at: np.ndarray
    answer_at: np.ndarray
    a: np.ndarray
    c: np.ndarray
    group: np.ndarray
    scoring: np.ndarray
    held_out: bool

    @property
    def period(self) -> int:
        """Number of classes."""
        return len(self.words)

    def __len__(self) -> int:
        return len(self.windows)


def label_pairs(
    labels: Sequence[Cyclic], operand: str | Sequence[str] | None, answer: str | Sequence[str] | None
) -> list[tuple[Cyclic, Cyclic]]:
    """Return the labels of operands with those of their answers.

    Raises
    ------
    UserError
        If only one side is given, their numbers or periods differ, or one is no cyclic label of the store.
    """
    known = {label.name: label for label in labels}
    if operand is None and answer is None:
        stems = [n.removesuffix("_operand") for n in known if n.endswith("_operand")]
        pairs = [(f"{stem}_operand", f"{stem}_answer") for stem in stems if f"{stem}_answer" in known]
    else:
        sides = [[each] if isinstance(each, str) else list(each or ()) for each in (operand, answer)]
        if len(sides[0]) != len(sides[1]):
            raise UserError(
                f"intervene.operand={operand}, intervene.answer={answer}: give as many labels of answers as of operands"
            )
        pairs = list(zip(*sides, strict=True))
    for name in [each for pair in pairs for each in pair]:
        if name not in known:
            raise UserError(f"no cyclic label {name!r} of whole numbers; nearest: {nearest(name, known)}")
    found = [(known[a], known[b]) for a, b in pairs]
    for a, b in found:
        if a.period != b.period:
            raise UserError(f"{a.name} has period {a.period}, {b.name} {b.period}: operand and answer need the same")
    return found


def find_prompts(context: Context, store: Store, rows: np.ndarray, operand: Cyclic, answer: Cyclic) -> Prompts | str:
    """Return the prompts of a pair of labels, or why there are none.

    Parameters
    ----------
    context, store : Context, Store
        Of the run.
    rows : np.ndarray
        Rows of the store that the labels' classes are given at.
    operand, answer : Cyclic
        The pair.
    """
    origins = store.origins
    sequence = origins["sequence"][rows]
    at_a, at_c = (_only_one(label.classes, sequence) for label in (operand, answer))
    both = sorted(set(at_a) & set(at_c))
    if len(both) < LEAST_PROMPTS:
        return f"{len(both)} sequences have one {operand.name} and one {answer.name}; {LEAST_PROMPTS} are needed"
    place_a, place_c = np.array([at_a[s] for s in both]), np.array([at_c[s] for s in both])
    tokens = class_tokens(origins["token"][rows], operand)
    if isinstance(tokens, str):
        return tokens
    a, c = operand.classes[place_a], answer.classes[place_c]
    windows: list[Any] = stored_examples(store, both)
    position = origins["position"][rows]
    difference = (c - a) % operand.period
    _, group = np.unique(a * operand.period + difference, return_inverse=True)
    scoring, held_out = parted(context, store, origins["document"][rows[place_a]], group)
    for label, classes in ((operand, a), (answer, c)):
        missing = np.setdiff1d(np.arange(label.period), classes[~scoring])
        if len(missing):
            return f"no prompt that is not scored has the {label.name} {label.words[missing[0]]!r}"
    return Prompts(
        operand.name, operand.words, tokens, windows, rows[place_a], rows[place_c],
        position[place_a], position[place_c], a, c, group, scoring, held_out,
    )  # fmt: skip


def _only_one(classes: np.ndarray, sequence: np.ndarray) -> dict[int, int]:
    """Return the place of the label in each sequence that has it once."""
    places = np.flatnonzero(classes >= 0)
    values, first, counts = np.unique(sequence[places], return_index=True, return_counts=True)
    return {int(s): int(places[i]) for s, i, n in zip(values, first, counts, strict=True) if n == 1}


def class_tokens(token: np.ndarray, label: Cyclic) -> np.ndarray | str:
    """Return the token of each class, or why classes cannot be told by one token each."""
    found = np.empty(label.period, dtype=np.int64)
    for each in range(label.period):
        ids, counts = np.unique(token[label.classes == each], return_counts=True)
        if not len(ids):
            return f"no prompt has the {label.name} {label.words[each]!r}"
        if counts.max() < ONE_TOKEN * counts.sum():
            return f"{label.name} {label.words[each]!r} is not one token, but now one and now another"
        found[each] = ids[counts.argmax()]
    if len(np.unique(found)) < label.period:
        return f"two classes of {label.name} begin with the same token"
    return found


def parted(context: Context, store: Store, document: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return which prompts are scored: documents held out from the subject, if flagged; else half of the problems."""
    fields = store.document_fields
    flags = np.array([bool(fields[each].get("held_out", False)) for each in document])
    if LEAST_PROMPTS <= flags.sum() <= len(flags) - LEAST_PROMPTS:
        return flags, True
    n = int(group.max()) + 1
    half = np.zeros(n, dtype=bool)
    half[context.rng("scored problems").permutation(n)[: n // 2]] = True
    return half[group], False


@torch.no_grad()
def answers(
    subject: Subject, windows: Sequence[TokenWindow], at: np.ndarray, edits: Any = None, *, at_once: int = 256
) -> np.ndarray:
    """Return the logits [n, vocab] at a position of each sequence.

    Parameters
    ----------
    subject : Subject
        A causal language model.
    windows, at : sequence, np.ndarray
        [n] sequences, and the position of each.
    edits : callable, optional
        ``edits(slice)`` gives the edits of a batch of them.
    at_once : int
        Sequences in a forward pass.
    """
    found = []
    for first in range(0, len(windows), at_once):
        here = slice(first, min(first + at_once, len(windows)))
        batch = subject.batch(list(windows[here]))
        value = subject.run(batch, edits=edits(here) if edits else {}).value
        assert value is not None
        rows = torch.arange(len(value), device=value.device)
        found.append(value[rows, torch.from_numpy(at[here]).to(value.device)].float().cpu().numpy())
    return np.concatenate(found)


@torch.no_grad()
def captured(
    subject: Subject, windows: Sequence[TokenWindow], hook_point: str, at: np.ndarray, *, at_once: int = 256
) -> np.ndarray:
    """Return a hook point's activations [n, width] at a position of each sequence."""
    found = []
    for first in range(0, len(windows), at_once):
        here = slice(first, min(first + at_once, len(windows)))
        batch = subject.batch(list(windows[here]))
        held = subject.run(batch, capture=[hook_point], stop_after=hook_point).captured[hook_point].flatten(2)
        rows = torch.arange(len(held), device=held.device)
        found.append(held[rows, torch.from_numpy(at[here]).to(held.device)].double().cpu().numpy())
    return np.concatenate(found)


def put(values: np.ndarray, at: np.ndarray) -> Any:
    """Return an edit that puts one vector [batch, width] at one position [batch] of each sequence."""

    def edit(activation: Tensor, where: Any) -> Tensor:
        edited = activation.flatten(2).clone()
        rows = torch.arange(len(edited), device=edited.device)
        edited[rows, torch.from_numpy(at).to(edited.device)] = torch.tensor(values).to(edited)
        return edited.view_as(activation)

    return edit


def with_operand(window: TokenWindow, at: int, token: int) -> TokenWindow:
    """Return a sequence with another token at one position."""
    tokens = window.tokens.copy()
    tokens[at] = token
    return TokenWindow(tokens, window.special, window.offsets)
