"""Docstrings (Heimersheim & Janiak 2023): a function documents its arguments in order, which comes next?"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.plugins.circuit.head_outputs import Tokens
from workbench.plugins.circuit.pairs import Pairs
from workbench.plugins.circuit.tasks.task import Prompts, Task
from workbench.plugins.circuit.tasks.wording import Wording, word_list
from workbench.subjects.protocol import Subject

N_PREFIX, N_MATCHING, N_SUFFIX = 2, 3, 1
LEAST_WORDS = 40


class Docstring(Task):
    """``def load(self, a, b, A, B, C, z):`` … ``:param A: …``, ``:param B: …``, ``:param``: C.

    Corrupted prompts, which are the negatives too, have other matching arguments, drawn apart for definition and
    docstring. Metric: logit of C minus the largest of all other arguments in either prompt.
    """

    name = "docstring"

    def contents(self) -> Any:
        """See `Task.contents`."""
        return word_list("arguments"), N_PREFIX, N_MATCHING, N_SUFFIX

    def make(self, subject: Subject, n: int, rng: np.random.Generator) -> Prompts:
        """See `Task.make`."""
        wording = Wording(subject)
        words = wording.enough(word_list("arguments"), LEAST_WORDS, "words", self.name)
        ids = wording.one_token(words)
        clean, corrupted, answer, wrong = [], [], [], []
        positions: dict[str, list[int]] = {key: [] for key in ("A_def", "B_def", "C_def", "A_doc", "B_doc", "end")}
        n_drawn = 1 + N_PREFIX + N_SUFFIX + 3 + 4 + N_MATCHING + N_MATCHING + N_MATCHING - 1
        for _ in range(n):
            drawn = iter([str(word) for word in rng.choice(words, n_drawn, replace=False)])
            name, *rest = (next(drawn) for _ in range(1 + N_PREFIX + N_SUFFIX + 3 + 4))
            outer, nouns, described = rest[: N_PREFIX + N_SUFFIX], rest[N_PREFIX + N_SUFFIX :][:3], rest[-4:]
            matching = [next(drawn) for _ in range(N_MATCHING)]
            text, starts = write(name, outer, nouns, described, matching, matching)
            other = [next(drawn) for _ in range(N_MATCHING)]
            documented = [next(drawn) for _ in range(N_MATCHING - 1)]
            clean.append(wording.tokens(text))
            corrupted.append(wording.tokens(write(name, outer, nouns, described, other, documented)[0]))
            answer.append((ids[matching[-1]],))
            wrong.append([ids[each] for each in (*outer, *matching[:-1], *other, *documented)])
            for key, start in starts.items():
                positions[key].append(wording.place(text, start))
            positions["end"].append(len(clean[-1]) - 1)
        pairs = Pairs.of(clean, corrupted, answer, wrong, positions=positions, metric="logit-minus-max")
        about = (
            "Corrupted prompts, which are the negatives of the discrete SAE too, have other matching arguments, drawn "
            "apart for definition and docstring (random_random)."
        )
        return Prompts(pairs, Tokens.of(corrupted), about)


def write(
    name: str, outer: list[str], nouns: list[str], described: list[str], matching: list[str], documented: list[str]
) -> tuple[str, dict[str, int]]:
    """Write a prompt; returns the text, and the character at which each matching argument begins."""
    text, starts = f"def {name}(self, {', '.join(outer[:N_PREFIX])}", {}
    for key, argument in zip("ABC", matching, strict=True):
        text += ", "
        starts[f"{key}_def"] = len(text)
        text += argument
    text += f', {", ".join(outer[N_PREFIX:])}):\n    """{" ".join(nouns)}\n\n'
    for at, key in enumerate("AB"):
        text += "    :param "
        starts[f"{key}_doc"] = len(text)
        text += f"{documented[at]}: {' '.join(described[2 * at : 2 * at + 2])}\n"
    return text + "    :param", starts
