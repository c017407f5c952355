"""The pool of texts that directions are decomposed into, and which concepts each of them names."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workbench.datasets.protocol import Dataset
from workbench.errors import UserError
from workbench.plugins.second_order.sample import Concept, readable

if TYPE_CHECKING:
    from workbench.plugins.second_order import SecondOrderConfig

WORDS = Path(__file__).with_name("words.json")


@dataclass(frozen=True)
class Pool:
    """Texts, and what they name.

    Attributes
    ----------
    texts : tuple of str
        Each once.
    names : np.ndarray
        [text, concept] True where the text names the concept.
    source : str
        Where they come from, for the report.
    """

    texts: tuple[str, ...]
    names: np.ndarray
    source: str


def make_pool(config: SecondOrderConfig, dataset: Dataset, concepts: Sequence[Concept]) -> Pool:
    """Return the texts of the file that was given, of the dataset, or common words with the names of all concepts.

    A text of the dataset's own pool names what the dataset says; only single words are taken, unless `phrases` are
    asked for: sums of phrases that each name a shape, a colour and a place say little of any. Any other text names a
    concept whose category it contains as a word (the longest first: *top left* is not *top*).

    Raises
    ------
    UserError
        If the file cannot be read, or has fewer than two texts.
    """
    own = dataset.descriptions() if config.texts is None else ()
    if own:
        said = {each.text: each.names for each in own if config.phrases or len(each.text.split()) == 1}
        if len(said) < 2:
            raise UserError(f"{dataset.address} has {len(said)} descriptions of one word: take its phrases=true")
        names = np.array([[(c.label, c.category) in named for c in concepts] for named in said.values()], dtype=bool)
        return Pool(
            tuple(said), names.reshape(len(said), len(concepts)), f"{len(said)} descriptions of {dataset.address}"
        )
    if config.texts is not None:
        texts, source = read_texts(config.texts), Path(config.texts).name
    else:
        words = [word for group in json.loads(WORDS.read_text(encoding="utf-8")).values() for word in group]
        texts = [*words, *(readable(concept.category) for concept in concepts)]
        source = "common words, with the names of all classes"
    texts = list(dict.fromkeys(texts))
    return Pool(tuple(texts), named_by(texts, concepts), f"{len(texts)} texts: {source}")


def read_texts(file: str) -> list[str]:
    """Read a file of texts, one a line."""
    try:
        lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"texts={file}: cannot be read as text: {error}") from None
    texts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if len(texts) < 2:
        raise UserError(f"texts={file}: has {len(texts)} texts, one a line; at least two are needed")
    return texts


def named_by(texts: Sequence[str], concepts: Sequence[Concept]) -> np.ndarray:
    """Return [text, concept], True where a text contains a concept's category as a word."""
    found = np.zeros((len(texts), len(concepts)), dtype=bool)
    for label in dict.fromkeys(concept.label for concept in concepts):
        of_label = {readable(c.category).lower(): i for i, c in enumerate(concepts) if c.label == label}
        longest = sorted(of_label, key=len, reverse=True)
        pattern = re.compile(r"\b(" + "|".join(re.escape(each) for each in longest) + r")s?\b")
        for row, text in enumerate(texts):
            for match in pattern.finditer(text.lower()):
                found[row, of_label[match[1]]] = True
    return found
