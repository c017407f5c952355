"""What a run of the subject is worth on each example: a number from the logits at the last real position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.plugins.circuit.pairs import Pairs


class Objective:
    """The metric of some pairs; higher is better.

    Parameters
    ----------
    pairs : Pairs
        Their metric decides: ``logit-difference`` (mean logit of the answers minus mean of the wrong ones),
        ``probability-difference`` (summed probabilities), ``logit-minus-max`` (mean logit of the answers minus the
        largest of the wrong ones), ``kl`` (minus the divergence, in nats, from the subject as it is).
    reference : Tensor [example, vocab], optional
        For ``kl``: log-probabilities of the subject as it is, on the clean prompts.

    Raises
    ------
    UserError
        For ``kl`` without a reference.
    """

    def __init__(self, pairs: Pairs, reference: Tensor | None = None) -> None:
        if pairs.metric == "kl" and reference is None:
            raise UserError("metric 'kl' compares with the subject as it is: measure that first (objective_of)")
        self.metric, self.reference = pairs.metric, reference
        self.last = torch.from_numpy(np.asarray(pairs.lengths, np.int64) - 1)
        self.answer, self.has_answer = _padded(pairs.answer)
        self.wrong, self.has_wrong = _padded(pairs.wrong)

    def __call__(self, logits: Tensor, at: Any) -> Tensor:
        """Score a batch.

        Parameters
        ----------
        logits : Tensor [batch, pos, vocab]
            As the subject gave them.
        at : int array [batch]
            Which of the pairs' examples these are.

        Returns
        -------
        Tensor [batch]
            In float32 or wider.
        """
        rows = torch.as_tensor(at, dtype=torch.int64)
        final = last_logits(logits, self.last[rows])
        if self.metric == "kl":
            assert self.reference is not None
            full = self.reference[rows].to(final)
            return -(full.exp() * (full - final.log_softmax(-1))).sum(-1)
        if self.metric == "probability-difference":
            final = final.softmax(-1)
        answer, has_answer = self.answer[rows].to(final.device), self.has_answer[rows].to(final.device)
        wrong, has_wrong = self.wrong[rows].to(final.device), self.has_wrong[rows].to(final.device)
        right = (final.gather(1, answer) * has_answer).sum(1)
        others = final.gather(1, wrong)
        if self.metric == "probability-difference":
            return right - (others * has_wrong).sum(1)
        right = right / has_answer.sum(1)
        if self.metric == "logit-minus-max":
            return right - others.masked_fill(~has_wrong, -torch.inf).max(1).values
        return right - (others * has_wrong).sum(1) / has_wrong.sum(1)


def objective(pairs: Pairs, reference: Tensor | None = None) -> Objective:
    """Return the metric of some pairs; see `Objective`."""
    return Objective(pairs, reference)


def last_logits(logits: Tensor, last: Tensor) -> Tensor:
    """Logits [batch, pos, vocab] at positions `last` [batch] -> [batch, vocab], in float32 or wider."""
    final = logits[torch.arange(len(last), device=logits.device), last.to(logits.device)]
    return final if final.dtype == torch.float64 else final.float()


def _padded(tokens: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Tokens [example, most], 0 where there is none, and a mask of where there is one."""
    most = max((len(each) for each in tokens), default=0)
    padded = torch.zeros(len(tokens), most, dtype=torch.int64)
    held = torch.zeros(len(tokens), most, dtype=torch.bool)
    for row, each in enumerate(tokens):
        padded[row, : len(each)] = torch.tensor(tuple(each), dtype=torch.int64)
        held[row, : len(each)] = True
    return padded, held
