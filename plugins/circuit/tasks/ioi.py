"""Indirect object identification (Wang et al., arXiv:2211.00593): two names, one of them again, who is left?"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.plugins.circuit.head_outputs import Tokens
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.tasks.task import Prompts, Task
from workbench.plugins.circuit.tasks.wording import Wording, word_list
from workbench.subjects.protocol import Subject

# [B] is the subject S, who appears twice; [A] the indirect object IO. As written the form is BABA.
TEMPLATES = (
    "Then, [B] and [A] went to the [PLACE]. [B] gave a [OBJECT] to",
    "Then, [B] and [A] had a long day at the [PLACE]. [B] handed a [OBJECT] to",
    "After lunch, [B] and [A] met at the [PLACE]. [B] brought a [OBJECT] to",
    "When [B] and [A] came to the [PLACE], [B] passed a [OBJECT] to",
    "While [B] and [A] were waiting at the [PLACE], [B] offered a [OBJECT] to",
    "After [B] and [A] left the [PLACE], [B] gave a [OBJECT] back to",
    "Yesterday [B] and [A] walked to the [PLACE], and [B] gave a [OBJECT] to",
    "Once [B] and [A] had found the [PLACE], [B] showed a [OBJECT] to",
    "Then, [B] and [A] argued at the [PLACE], but in the end [B] sold a [OBJECT] to",
    "Because [B] and [A] worked at the [PLACE], [B] often lent a [OBJECT] to",
    "Last week [B] and [A] got a [OBJECT] at the [PLACE]. [B] decided to give it to",
    "As [B] and [A] were about to leave the [PLACE], [B] threw a [OBJECT] to",
    "Then, [B] and [A] were thinking about going to the [PLACE]. [B] wanted to give a [OBJECT] to",
    "Friends of old, [B] and [A] sat in the [PLACE], where [B] promised a [OBJECT] to",
    "The moment [B] and [A] reached the [PLACE], [B] sent a [OBJECT] to",
)
LEAST_NAMES = 5  # S and IO, and three others for a corrupted prompt
FORMS = {
    "abc": "IO and both mentions of S are replaced by three other names",
    "s2-io": "the second mention of S is replaced by IO, which turns the answer round",
}


class IndirectObject(Task):
    """``Then, Mary and John went to the store. John gave a drink to``: Mary.

    Half of the prompts name S first (BABA), half IO (ABBA). Metric: logit of IO minus logit of S. Negatives: three
    different names, so that nobody is named twice.
    """

    name = "ioi"
    forms = FORMS

    def contents(self) -> Any:
        """See `Task.contents`."""
        return TEMPLATES, *(word_list(kind) for kind in ("names", "places", "objects"))

    def make(self, subject: Subject, n: int, rng: np.random.Generator) -> Prompts:
        """See `Task.make`."""
        wording = Wording(subject)
        names = wording.enough(word_list("names"), LEAST_NAMES, "first names", self.name)
        ids = wording.one_token(names)
        places, objects = (wording.enough(word_list(kind), 1, kind, self.name) for kind in ("places", "objects"))
        clean, corrupted, answer, wrong, negatives = [], [], [], [], []
        positions: dict[str, list[int]] = {key: [] for key in ("IO", "S1", "S2", "end")}
        for number in range(n):
            template = TEMPLATES[rng.integers(len(TEMPLATES))]
            template = template.replace("[PLACE]", str(rng.choice(places))).replace(
                "[OBJECT]", str(rng.choice(objects))
            )
            io, s, *others = (str(name) for name in rng.choice(names, LEAST_NAMES, replace=False))
            io_first = number % 2 == 1
            text, starts = fill(template, io, s, s, io_first)
            clean.append(wording.tokens(text))
            three, _ = fill(template, others[0], others[1], others[2], io_first)
            corrupted.append(wording.tokens(three if self.form == "abc" else fill(template, io, s, io, io_first)[0]))
            negatives.append(wording.tokens(three))
            answer.append((ids[io],))
            wrong.append((ids[s],))
            for key, start in starts.items():
                positions[key].append(wording.place(text, start))
            positions["end"].append(len(clean[-1]) - 1)
        pairs = Pairs.of(clean, corrupted, answer, wrong, positions=positions)
        about = f"Corrupted: {FORMS[self.form]}. Negatives of the discrete SAE: three different names."
        return Prompts(pairs, Tokens.of(negatives), about)


def fill(template: str, io: str, s1: str, s2: str, io_first: bool) -> tuple[str, dict[str, int]]:
    """Put names into a template; returns the text, and the character at which each name begins."""
    order = ("IO", "S1", "S2") if io_first else ("S1", "IO", "S2")
    names = {"IO": io, "S1": s1, "S2": s2}
    text, starts = "", {}
    pieces = template.replace("[A]", "[B]").split("[B]")
    for piece, role in zip(pieces, order, strict=False):
        text += piece
        starts[role] = len(text)
        text += names[role]
    return text + pieces[-1], starts
