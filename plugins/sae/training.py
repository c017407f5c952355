"""The training loop: seeded, resumable to the same bits, with checkpoints that are there whole or not at all."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.plugins.sae.trainer import Diverged, Trainer
from workbench.progress import Ticker
from workbench.ranks import ALONE, Ranks

SCHEMA = 4  # of checkpoints

log = logging.getLogger("workbench")


class Pass(Protocol):
    """One pass over the training rows, such as `Store.shuffled` gives."""

    def __iter__(self) -> Iterator[Any]:
        """Give batches, {hook point: Tensor [rows, ...]}."""

    def state(self) -> Mapping[str, Any]:
        """Return what is needed to go on after the last batch; JSON values."""


Source = Callable[[int, "Mapping[str, Any] | None"], Pass]
"""``source(epoch, state)`` starts an epoch, or goes on with it."""


class Training:
    """Dictionaries that are trained side by side, each batch read once for all of them.

    Parameters
    ----------
    trainers : sequence of Trainer
        With the same number of rows, and of rows in a batch.
    checkpoint : Path
        File that is replaced now and then, by the first of several processes; all read it.
    ranks : Ranks
        Processes that share the rows of each step.
    """

    def __init__(self, trainers: Sequence[Trainer], checkpoint: Path, ranks: Ranks = ALONE) -> None:
        self.trainers, self.ranks = list(trainers), ranks
        self.checkpoint = checkpoint
        self.epoch = 0
        self.loader: Mapping[str, Any] | None = None

    @property
    def rows_done(self) -> int:
        """Rows shown to each of them that has not failed."""
        return max(trainer.rows_done for trainer in self.trainers)

    def run(self, source: Source, checkpoint_s: float, ticker: Ticker) -> None:
        """Train to the end, from wherever it stands.

        Parameters
        ----------
        source : callable
            Starts or continues an epoch.
        checkpoint_s : float
            Time between checkpoints; there is one at the end too.
        ticker : Ticker
            Shown progress, in rows.
        """
        saved = time.monotonic()
        rows = self.trainers[0].settings.rows
        while self.rows_done < rows:
            batches = source(self.epoch, self.loader)
            for batch in batches:
                wanted = {name: values[: rows - self.rows_done] for name, values in batch.items()}
                before = self.rows_done
                self.step(wanted)
                self.loader = batches.state()
                ticker.advance(self.rows_done - before)
                if self.rows_done >= rows:
                    break
                if time.monotonic() - saved >= checkpoint_s:
                    self.save()
                    saved = time.monotonic()
                self.report(ticker)
            self.epoch, self.loader = self.epoch + 1, None
        self.save()

    def step(self, batch: Mapping[str, Tensor]) -> None:
        """Take a step with each; where there are others, one that fails is given up.

        Raises
        ------
        UserError
            If the last one has failed.
        """
        for number, trainer in enumerate(self.trainers):
            if trainer.failed:
                continue
            try:
                trainer.one_step(batch, self.ranks)
            except Diverged as error:
                trainer.failed = str(error)
                if all(each.failed for each in self.trainers):
                    raise
                log.warning("dictionary %d of %d: %s; the others go on", number + 1, len(self.trainers), error)

    def report(self, ticker: Ticker) -> None:
        """Show now and then how the first one stands."""
        first = next(trainer for trainer in self.trainers if not trainer.failed)
        if first.step % 20 == 0:
            error, _, _, l0, dead, _ = first.history[first.step - 1].tolist()
            ticker.update(explained=1 - error, l0=l0, dead=int(dead))

    # --- checkpoints ----------------------------------------------------------------------------------------------
    def save(self) -> None:
        """Write everything that the next step depends on; the file is replaced as a whole."""
        if self.ranks.rank:
            return
        tensors: dict[str, Tensor] = {}
        values: list[dict[str, Any]] = []
        for number, trainer in enumerate(self.trainers):
            held, plain = trainer.state()
            tensors |= {f"{number}.{name}": tensor for name, tensor in held.items()}
            values.append(plain)
        loader = None if self.loader is None else dict(self.loader)
        meta = {"schema": SCHEMA, "trainers": values, "epoch": self.epoch, "loader": loader}
        part = self.checkpoint.with_suffix(".part")
        save_file(tensors, part, metadata={"state": json.dumps(meta)})
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(self.checkpoint)

    def load(self) -> bool:
        """Go on from a checkpoint of the same trainings; returns whether there was one."""
        if not self.checkpoint.is_file():
            return False
        with safe_open(self.checkpoint, framework="pt") as file:
            meta = json.loads(file.metadata()["state"])
            values = meta.get("trainers", [])
            if meta.get("schema") != SCHEMA or len(values) != len(self.trainers):
                return False
            for trainer, plain in zip(self.trainers, values, strict=True):
                if any(plain[name] != value for name, value in trainer.identity().items()):
                    return False
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        for number, (trainer, plain) in enumerate(zip(self.trainers, values, strict=True)):
            start = f"{number}."
            own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
            trainer.load(own, plain)
        self.epoch, self.loader = meta["epoch"], meta["loader"]
        return True
