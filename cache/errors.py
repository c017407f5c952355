"""What can be wrong with a store, said so that a person can mend it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


class StoreError(Exception):
    """Wrong input to the store, or a store that cannot be used as asked. The message says what would be right."""


@dataclass(frozen=True)
class Damage:
    """One fault of a store on disk.

    Attributes
    ----------
    file : str
        Relative to the store: ``shards/000003.h5``.
    what : str
        What is wrong with it.
    dataset : str, optional
        Inside the file: ``/activations/blocks.3.hook_resid_post``. None where the fault is of the whole file.
    chunk : int, optional
        Number of the chunk in that dataset, from 0.
    rows : tuple of (int, int), optional
        First row and end row (excluded) of the store that the fault reaches.
    """

    file: str
    what: str
    dataset: str | None = None
    chunk: int | None = None
    rows: tuple[int, int] | None = None

    def __str__(self) -> str:
        dataset = "" if self.dataset is None else f", dataset {self.dataset}"
        chunk = "" if self.chunk is None else f", chunk {self.chunk}"
        rows = "" if self.rows is None else f" (rows {self.rows[0]} to {self.rows[1] - 1})"
        return f"{self.file}{dataset}{chunk}{rows}: {self.what}"


class DamageError(StoreError):
    """A store is damaged on disk; `damage` names shard, dataset and chunk.

    Parameters
    ----------
    folder : str
        The store.
    damage : Damage
        What was found.
    """

    def __init__(self, folder: object, damage: Damage) -> None:
        super().__init__(folder, damage)
        self.damage = damage

    def __str__(self) -> str:
        folder, damage = self.args
        return f"{folder} is damaged: {damage} (all damage: workbench store verify {folder})"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the three known names closest to `name`, best first; "none" where nothing is known."""
    return ", ".join(get_close_matches(name, list(known), n=3, cutoff=0.0)) or "none"
