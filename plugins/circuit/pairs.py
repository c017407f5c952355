"""Pairs of prompts: the same task twice, once clean and once with what decides the answer changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from workbench.errors import UserError, nearest

METRICS = ("logit-difference", "probability-difference", "logit-minus-max", "kl")
UNANSWERED = ("kl",)  # metrics that need neither right nor wrong answers


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted prompts that align token by token, with right and wrong next tokens.

    Attributes
    ----------
    clean, corrupted : int64 array [example, pos]
        Token ids, padded on the right with 0.
    lengths : int64 array [example]
        Real tokens of each; the answer is read at the last of them.
    answer, wrong : tuple of tuple of int
        For each example the right and the wrong next tokens.
    positions : dict of str to int64 array [example]
        Positions with a name of their own (``S2``, ``end``), for tables and figures.
    metric : str
        How an answer is scored: one of `METRICS`.

    Raises
    ------
    UserError
        If the parts do not fit each other, or a metric lacks the answers that it compares.
    """

    clean: np.ndarray
    corrupted: np.ndarray
    lengths: np.ndarray
    answer: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]
    positions: dict[str, np.ndarray] = field(default_factory=dict)
    metric: str = "logit-difference"

    def __post_init__(self) -> None:
        n = len(self.clean)
        if self.clean.ndim != 2 or self.clean.shape != self.corrupted.shape:
            raise UserError(
                f"clean prompts {self.clean.shape} and corrupted ones {self.corrupted.shape}: both must be "
                "[example, position], of one shape"
            )
        for name in ("lengths", "answer", "wrong"):
            if len(getattr(self, name)) != n:
                raise UserError(f"{name} of {len(getattr(self, name))} examples, but there are {n}")
        for name, at in self.positions.items():
            if len(at) != n:
                raise UserError(f"positions {name!r} of {len(at)} examples, but there are {n}")
        if self.metric not in METRICS:
            raise UserError(f"metric {self.metric!r}: nearest {nearest(self.metric, METRICS)}")
        for i, length in enumerate(self.lengths):
            if not 1 <= length <= self.clean.shape[1]:
                raise UserError(f"example {i} has {length} tokens: must be between 1 and {self.clean.shape[1]}")
            if self.metric in UNANSWERED:
                continue
            if not self.answer[i] or not self.wrong[i]:
                lacking = "wrong" if self.answer[i] else "answer"
                raise UserError(f"example {i} has no {lacking} token, and {self.metric} compares both")
            if shared := set(self.answer[i]) & set(self.wrong[i]):
                raise UserError(f"example {i} has token {min(shared)} among both its answers and its wrong answers")

    def __len__(self) -> int:
        return len(self.clean)

    @classmethod
    def of(
        cls,
        clean: Sequence[Sequence[int]],
        corrupted: Sequence[Sequence[int]],
        answer: Iterable[Iterable[int]],
        wrong: Iterable[Iterable[int]],
        *,
        positions: Mapping[str, Any] | None = None,
        metric: str = "logit-difference",
    ) -> Pairs:
        """Pad token lists into pairs.

        Parameters
        ----------
        clean, corrupted : sequences of token ids
            One of each per example.
        answer, wrong : token ids
            Per example.
        positions, metric
            See the class.

        Raises
        ------
        UserError
            If there is no example, an example's clean and corrupted prompt differ in length, or the parts do not fit.
        """
        if not clean or len(clean) != len(corrupted):
            raise UserError(f"{len(clean)} clean and {len(corrupted)} corrupted prompts: one of each, and at least one")
        for i, (one, other) in enumerate(zip(clean, corrupted, strict=True)):
            if len(one) != len(other):
                raise UserError(
                    f"example {i}: the clean prompt has {len(one)} tokens and the corrupted one {len(other)}; they "
                    "must align token by token"
                )
        lengths = np.array([len(one) for one in clean], np.int64)
        arrays = []
        for prompts in (clean, corrupted):
            padded = np.zeros((len(prompts), int(lengths.max())), np.int64)
            for row, prompt in zip(padded, prompts, strict=True):
                row[: len(prompt)] = prompt
            arrays.append(padded)
        given = {name: np.asarray(at, np.int64) for name, at in (positions or {}).items()}
        answers, wrongs = (tuple(tuple(int(t) for t in each) for each in tokens) for tokens in (answer, wrong))
        return cls(arrays[0], arrays[1], lengths, answers, wrongs, given, metric)

    def take(self, indices: Any) -> Pairs:
        """Return some of the examples, in the order of `indices` (integers)."""
        at = np.asarray(indices, np.int64)
        return replace(
            self,
            clean=self.clean[at],
            corrupted=self.corrupted[at],
            lengths=self.lengths[at],
            answer=tuple(self.answer[i] for i in at),
            wrong=tuple(self.wrong[i] for i in at),
            positions={name: where[at] for name, where in self.positions.items()},
        )

    def halves(self, rng: np.random.Generator) -> tuple[Pairs, Pairs]:
        """Return two random halves, one to score on and one to evaluate on.

        Raises
        ------
        UserError
            If there are fewer than two examples.
        """
        if len(self) < 2:
            raise UserError("one example cannot be halved: give at least two")
        order = rng.permutation(len(self))
        middle = (len(self) + 1) // 2
        return self.take(np.sort(order[:middle])), self.take(np.sort(order[middle:]))

    def swapped(self) -> Pairs:
        """Return the pairs with clean and corrupted exchanged; the answers stay those of the clean prompts."""
        return replace(self, clean=self.corrupted, corrupted=self.clean)
