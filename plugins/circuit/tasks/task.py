"""What a task offers: pairs of prompts made for one subject, and negatives on which there is nothing to solve."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import xxhash

from workbench.datasets.protocol import Dataset, Document
from workbench.errors import UserError, nearest
from workbench.plugins.circuit.head_outputs import Tokens
from workbench.plugins.circuit.pairs import Pairs
from workbench.subjects.protocol import Subject


@dataclass(frozen=True)
class Prompts:
    """The prompts of a task for one subject.

    Attributes
    ----------
    pairs : Pairs
        Clean and corrupted ones.
    negatives : Tokens
        Prompts of the same form on which there is nothing to solve, for the discrete SAE.
    about : str
        What negatives and corrupted prompts are, in a sentence.
    """

    pairs: Pairs
    negatives: Tokens
    about: str

    @property
    def positives(self) -> Tokens:
        """The clean prompts."""
        return Tokens(self.pairs.clean, self.pairs.lengths)


class Task(Dataset):
    """A dataset of prompts that are made for a subject: of its own tokens, aligned token by token.

    It holds no documents: `workbench run circuit` reads it, `workbench capture` cannot.

    Parameters
    ----------
    rest : str
        What follows the name in an address: the form of the corruption, one of `forms`; the first if empty.

    Raises
    ------
    UserError
        For a form that the task does not have.
    """

    modality: Literal["text", "vision"] = "text"
    name: ClassVar[str]
    version: ClassVar[str] = "1"  # part of the fingerprint: change it when prompts change
    forms: ClassVar[Mapping[str, str]] = {}

    def __init__(self, rest: str = "") -> None:
        if rest and rest not in self.forms:
            known = f"nearest: {nearest(rest, self.forms)}" if self.forms else "it takes none"
            raise UserError(f"task {self.name}: no form {rest!r}; {known}")
        self.form = rest or next(iter(self.forms), "")
        self.address = f"{self.name}:{rest}" if rest else self.name

    @abstractmethod
    def make(self, subject: Subject, n: int, rng: np.random.Generator) -> Prompts:
        """Make n pairs and n negatives, the same for equal generators.

        Raises
        ------
        UserError
            If the subject's tokenizer does not fit the task.
        """

    def fingerprint(self) -> str:
        """See `Dataset.fingerprint`."""
        return xxhash.xxh3_128_hexdigest(repr((self.name, self.version, self.form, self.contents())).encode())

    def contents(self) -> Any:
        """What decides the prompts besides name, version and form."""
        return None

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True  # though without documents, it is one

    def document(self, index: int) -> Document:
        """See `Dataset.document`: there is none."""
        raise UserError(
            f"{self.address} makes prompts for one subject's tokenizer: 'workbench run circuit' reads it, and it has "
            "no documents"
        )
