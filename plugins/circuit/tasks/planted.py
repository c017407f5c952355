"""The task that a planted subject of the zoo was built for."""

from __future__ import annotations

import numpy as np

from workbench.errors import UserError
from workbench.plugins.circuit.head_outputs import Tokens
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.tasks.task import Prompts, Task
from workbench.subjects.protocol import Subject
from workbench.zoo.planted import is_planted
from workbench.zoo.planted_prompts import pairs as planted_pairs

PREFIX = "zoo:"
FORMS = {
    "erased": "the clean prompts with every name replaced by a filler",
    "corrupted": "the corrupted prompts: other names in the same places",
}


def planted_name(subject: Subject) -> str | None:
    """Return the zoo's name of a planted subject, None for another one."""
    name = subject.address.removeprefix(PREFIX)
    return name if subject.address.startswith(PREFIX) and is_planted(name) else None


class Planted(Task):
    """Prompts of a ``zoo:planted-*`` subject. The form says what the discrete SAE's negatives are."""

    name = "planted"
    forms = FORMS

    def make(self, subject: Subject, n: int, rng: np.random.Generator) -> Prompts:
        """See `Task.make`."""
        name = planted_name(subject)
        if name is None:
            raise UserError(
                f"task planted is that of a zoo:planted-* subject, and {subject.address} is none: give --data, such as "
                "induction, ioi, or a file of pairs"
            )
        seed = int(rng.integers(2**31))
        found = planted_pairs(name, n, seed, "corrupted")
        erased = found if self.form == "corrupted" else planted_pairs(name, n, seed, "erased")
        lengths = np.full(n, found.clean.shape[1], dtype=np.int64)
        pairs = Pairs(found.clean, found.negative, lengths, found.answer, found.wrong, dict(found.positions))
        about = (
            "Corrupted: other names in the same places, and other fillers. Negatives of the discrete SAE: "
            f"{FORMS[self.form]}."
        )
        return Prompts(pairs, Tokens(erased.negative, lengths), about)
