"""From a configuration and a store to the numbers that a training run uses, and who is trained on."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from workbench.cache import Store
from workbench.errors import UserError, nearest
from workbench.plugins.sae import EvaluateConfig, SaeConfig

ROWS_BY_DEFAULT = 1_000_000
EPOCHS_BY_DEFAULT = 8
STEPS_WANTED = 4096


@dataclass(frozen=True)
class Settings:
    """Every number of a training run, none left to a default.

    Attributes
    ----------
    width, latents, k : int
        Of the dictionary.
    epoch_rows, rows : int
        Rows of one epoch and of the training.
    batch_rows, lr, warmup, decay, aux_k, aux_weight, dead_after, centre
        See `TrainConfig`.
    """

    width: int
    latents: int
    k: int
    epoch_rows: int
    rows: int
    batch_rows: int
    lr: float
    warmup: float
    decay: float
    aux_k: int
    aux_weight: float
    dead_after: int
    centre: str

    @property
    def n_steps(self) -> int:
        """Number of batches; an epoch's last one may be short."""
        epochs, rest = divmod(self.rows, self.epoch_rows)
        return epochs * math.ceil(self.epoch_rows / self.batch_rows) + math.ceil(rest / self.batch_rows)

    def lr_at(self, rows_done: int) -> float:
        """Learning rate after some rows: a linear rise, a plateau, a linear fall to zero."""
        done = rows_done / self.rows
        rise = min(1.0, (done + 1 / self.n_steps) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (1 - done) / self.decay) if self.decay else 1.0
        return self.lr * min(rise, fall)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)


def choose_settings(config: SaeConfig, width: int, epoch_rows: int) -> Settings:
    """Fill in what the configuration leaves to the data.

    Parameters
    ----------
    config : SaeConfig
        As given.
    width : int
        Of the hook point, trailing axes laid side by side.
    epoch_rows : int
        Rows of training documents, special tokens left out.

    Raises
    ------
    UserError
        If k is larger than the number of latents, or there are no rows.
    """
    train = config.train
    if epoch_rows < 1:
        raise UserError("no rows to train on: every row is a special token or belongs to a held-out document")
    latents = config.latents or max(2, round(config.expansion * width))
    k = config.k or min(32, max(1, width // 8), latents)
    if k > latents:
        raise UserError(f"k={k}: must be at most {latents}, the number of latents")
    rows = train.rows or max(epoch_rows, min(EPOCHS_BY_DEFAULT * epoch_rows, ROWS_BY_DEFAULT))
    batch_rows = train.batch_rows or min(4096, max(256, 1 << (rows // STEPS_WANTED).bit_length()))
    return Settings(
        width=width,
        latents=latents,
        k=k,
        epoch_rows=epoch_rows,
        rows=rows,
        batch_rows=min(batch_rows, epoch_rows),
        lr=train.lr or min(4e-3, 1.5e-3 * math.sqrt(2048 / latents)),
        warmup=train.warmup,
        decay=train.decay,
        aux_k=max(1, width // 2) if train.aux_k is None else train.aux_k,
        aux_weight=train.aux_weight,
        dead_after=train.dead_after or max(rows // 20, 10 * batch_rows),
        centre=train.centre,
    )


def choose_hook_point(store: Store, wanted: str | None) -> str:
    """Return the hook point to train on; without a name the store's only one."""
    names = list(store.hook_points)
    if wanted is None:
        if len(names) == 1:
            return names[0]
        raise UserError(
            f"{store.folder} has {len(names)} hook points: choose one with hook_point=…, of {', '.join(names)}"
        )
    if wanted not in names:
        raise UserError(f"{store.folder} has no hook point {wanted!r}; nearest: {nearest(wanted, names)}")
    return wanted


@dataclass(frozen=True)
class Split:
    """Rows by the documents that they come from; special tokens are in neither part, unless there are no others.

    Attributes
    ----------
    train, held_out : bool array [rows]
        Rows of the store.
    n_train_documents, n_held_out_documents : int
        Documents behind them.
    how : str
        One sentence for the report.
    """

    train: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    n_train_documents: int
    n_held_out_documents: int
    how: str


def split_rows(store: Store, config: EvaluateConfig, seed: int) -> Split:
    """Part the store's rows by document: by the dataset's ``held_out`` flag, else by a seeded hash of the name.

    Neither part is empty: flags that are the same for all documents with rows decide nothing.

    Raises
    ------
    UserError
        If the rows come from fewer than two documents.
    """
    origins = store.origins
    ordinary = store.ordinary
    present = np.unique(origins["document"][ordinary])
    if len(present) < 2:
        raise UserError(
            f"{store.folder} has rows of {len(present)} document{'s' * (len(present) != 1)}: at least 2 are needed, "
            "one to train on and one to measure on; capture more rows or documents"
        )
    held_out = np.zeros(len(store.documents), dtype=bool)
    fields = store.document_fields
    flags = np.array([bool(fields[document].get("held_out")) for document in present])
    if flags.any() and not flags.all():
        held_out[present] = flags
        how = "documents that the dataset flags as held out"
    else:  # no flags, or none that parts the documents that have rows here
        names = store.documents
        n_held_out = min(math.ceil(config.held_out * len(present)), len(present) - 1)
        hashes = [xxhash.xxh3_64_intdigest(f"{seed}:{names[document]}".encode()) for document in present]
        held_out[present[np.argsort(hashes)[:n_held_out]]] = True
        how = f"{100 * config.held_out:g} % of the documents, by a seeded hash of their names"
        if any("held_out" in fields[document] for document in present):
            how += f" (the dataset flags {'all' if flags.any() else 'none'} of those captured as held out)"
    of_row = held_out[origins["document"]]
    n_held_out = int(held_out[present].sum())
    return Split(ordinary & ~of_row, ordinary & of_row, len(present) - n_held_out, n_held_out, how)
