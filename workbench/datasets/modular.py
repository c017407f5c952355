"""The dataset ``modular``: every sum of two numbers modulo a prime, with operands and answer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import xxhash

from workbench.datasets.modular_text import NUMBERS, PRIME, Sum, shown_sums, sums
from workbench.datasets.protocol import Dataset, Document, LabelSpec, Span, SpanLabel


def _cyclic(name: str, description: str) -> LabelSpec:
    return LabelSpec(name, "arithmetic", "row", "cyclic", NUMBERS, PRIME, description=description)


SPECS: tuple[LabelSpec, ...] = (
    _cyclic("number", "a number, at either place"),
    _cyclic("sum_operand", "the first number"),
    _cyclic("sum_other", "the second number"),
    _cyclic("sum_answer", "the right answer, at the equals sign"),
    LabelSpec("held_out", "prompts", "document", "binary", description="zoo:modular was never shown this sum"),
)


class Modular(Dataset):
    """One document per sum, up to its answer: ``12 + 45 =``.

    Fields of its documents: ``a``, ``b``, ``answer_index``, ``answer`` (the word), and ``held_out``.

    Parameters
    ----------
    seed : int
        Of the order of the documents.
    """

    modality = "text"
    address = "modular"
    label_specs = SPECS

    def __init__(self, seed: int = 0) -> None:
        self.shown = shown_sums()
        every = sums()
        self.sums = [every[i] for i in np.random.default_rng(seed).permutation(len(every))]

    def __len__(self) -> int:
        """See `Dataset`."""
        return len(self.sums)

    def document(self, index: int) -> Document:
        """See `Dataset.document`."""
        one = self.sums[index]
        fields = {"a": one.a, "b": one.b, "answer_index": one.answer, "answer": NUMBERS[one.answer]}
        return Document(f"{one.a}+{one.b}", one.prompt, fields={**fields, "held_out": one not in self.shown})

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`: all sums in their order, and which are shown."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return xxhash.xxh3_128_hexdigest(repr([(*one, one.prompt, one in self.shown) for one in self.sums]).encode())

    def labels(self, document: Document) -> Mapping[str, SpanLabel | float | None]:
        """See `Dataset.labels`."""
        text, one = document.text or "", Sum(int(document.fields["a"]), int(document.fields["b"]))
        first, second = 0, text.index("+ ") + 2
        operand = Span(first, first + len(NUMBERS[one.a]), float(one.a))
        other = Span(second, second + len(NUMBERS[one.b]), float(one.b))
        return {
            "number": SpanLabel([operand, other], None),
            "sum_operand": SpanLabel([operand], None),
            "sum_other": SpanLabel([other], None),
            "sum_answer": SpanLabel([Span(len(text) - 1, len(text), float(one.answer))], None),
            "held_out": float(document.fields["held_out"]),
        }
