"""Stores of rows that are sparse sums of known features, for the benchmark of recovery."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from workbench.cache import ActivationSpec, ExamplesBuilder, Store, StoreWriter, open_store

HOOK = "blocks.0.hook_resid_post"
CONTEXT, PER_DOCUMENT = 250, 4  # rows of a sequence, sequences of a document
HELD_OUT = 50  # one document in so many
MOST_OFTEN = 0.5  # share of the rows that a feature may be in
BLOCK_ROWS = 50_000  # drawn, and shuffled for the control, at a time


@dataclass(frozen=True)
class Planted:
    """Unit features at random directions, each in some of the rows, the frequent ones far more often than the rare.

    Attributes
    ----------
    n_features, width : int
        Features, and entries of each.
    active : float
        Features in a row, on average.
    skew : float
        Feature i, counted from 1, is in a share of the rows that goes as i to the power of minus this.
    seed : int
        Of features and rows.
    """

    n_features: int
    width: int
    active: float
    skew: float
    seed: int

    @cached_property
    def features(self) -> Tensor:
        """The truth [features, width], the most frequent first."""
        drawn = torch.randn(self.n_features, self.width, generator=self.numbers("features"))
        return torch.nn.functional.normalize(drawn, dim=1)

    @cached_property
    def frequency(self) -> Tensor:
        """Share of the rows that each feature is in [features]; they sum to `active`."""
        weight = torch.arange(1, self.n_features + 1, dtype=torch.float64) ** -self.skew
        share = weight * self.active / weight.sum()
        for _ in range(100):  # what is above the ceiling goes to the others
            free = share < MOST_OFTEN
            share[~free] = MOST_OFTEN
            share[free] *= (self.active - MOST_OFTEN * int((~free).sum())) / share[free].sum()
        return share.float()

    def numbers(self, name: str) -> torch.Generator:
        """Return a generator of its own for each name."""
        return torch.Generator().manual_seed(1000 * self.seed + {"features": 1, "rows": 2, "shuffle": 3}[name])

    def rows(self, n: int, numbers: torch.Generator) -> Tensor:
        """Draw rows [n, width]: strengths between 0.5 and 1.5."""
        on = torch.rand(n, self.n_features, generator=numbers) < self.frequency
        strength = 0.5 + torch.rand(n, self.n_features, generator=numbers)
        return (on * strength) @ self.features

    def write(self, folder: Path, n_rows: int, *, shuffled: bool = False) -> Store:
        """Write a store of float16 rows, a document in 50 held out.

        Parameters
        ----------
        folder : Path
            New.
        n_rows : int
            A multiple of `CONTEXT`.
        shuffled : bool
            Permute every column by itself, block by block: each entry is distributed as before, and what they have to
            do with each other is gone. The control.
        """
        plan = ExamplesBuilder()
        for sequence in range(n_rows // CONTEXT):
            number, window = divmod(sequence, PER_DOCUMENT)
            if window == 0:
                document = plan.document(f"{number:05d}", {"held_out": number % HELD_OUT == 0})
            plan.sequence(document, np.arange(CONTEXT), window=window)
        spec = {HOOK: ActivationSpec(("d_model",), (self.width,), "float16")}
        numbers, order = self.numbers("rows"), self.numbers("shuffle")
        with StoreWriter(folder, spec, plan.build(), {"model": {"address": "none", "fingerprint": "m"}}) as writer:
            while writer.next_row < n_rows:
                rows = self.rows(min(BLOCK_ROWS, n_rows - writer.next_row), numbers)
                if shuffled:
                    rows = torch.stack([column[torch.randperm(len(rows), generator=order)] for column in rows.T], dim=1)
                writer.append({HOOK: rows.numpy()})
        return open_store(folder)


def recovery(features: Tensor, W_dec: Tensor) -> np.ndarray:
    """Return for each feature [features, width] the largest cosine with a decoder row [latents, width], in float64."""
    unit = torch.nn.functional.normalize(W_dec.detach().double(), dim=1)
    return (features.double() @ unit.T).amax(1).numpy()
