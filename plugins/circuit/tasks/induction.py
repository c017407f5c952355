"""Induction: random tokens, in which A was followed by B; A again, what comes next?"""

from __future__ import annotations

import numpy as np

from workbench.errors import UserError
from workbench.plugins.circuit.head_outputs import Tokens
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.tasks.task import Prompts, Task
from workbench.plugins.circuit.tasks.wording import ordinary_tokens, special_prefix
from workbench.subjects.protocol import Subject

LENGTH, LEAST = 16, 4  # tokens after those with which a text begins


class Induction(Task):
    """``… A B … A``: B. Needs no words, so any language model will do.

    Corrupted prompts are of the same form with other tokens. Metric: logit of B minus the mean logit of the prompt's
    other tokens. Negatives: no token twice.
    """

    name = "induction"

    def make(self, subject: Subject, n: int, rng: np.random.Generator) -> Prompts:
        """See `Task.make`."""
        ids = ordinary_tokens(subject)
        prefix = special_prefix(subject)
        length = min(LENGTH, subject.n_context - len(prefix), len(ids) // 3)
        if length < LEAST:
            raise UserError(
                f"task induction needs room for {LEAST} tokens and {3 * LEAST} different ones: {subject.address} takes "
                f"{subject.n_context} and has {len(ids)}"
            )
        clean, corrupted, answer, wrong, negatives = [], [], [], [], []
        positions: dict[str, list[int]] = {"A1": [], "B1": [], "end": []}
        for _ in range(n):
            drawn = rng.choice(ids, 3 * length, replace=False).reshape(3, length)
            at = int(rng.integers(0, length - 2))
            drawn[:2, -1] = drawn[:2, at]
            first, second, none = ([*prefix, *row.tolist()] for row in drawn)
            clean.append(first)
            corrupted.append(second)
            negatives.append(none)
            answer.append((int(drawn[0, at + 1]),))
            wrong.append([int(token) for token in drawn[0, :-1] if token != drawn[0, at + 1]])
            for key, where in (("A1", at), ("B1", at + 1), ("end", length - 1)):
                positions[key].append(len(prefix) + where)
        pairs = Pairs.of(clean, corrupted, answer, wrong, positions=positions)
        about = "Corrupted: a prompt of the same form with other tokens. Negatives of the discrete SAE: no token twice."
        return Prompts(pairs, Tokens.of(negatives), about)
