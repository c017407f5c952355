"""One dictionary in training: its weights, their moments, and one step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.plugins.sae.adam import Adam, Optimiser
from workbench.plugins.sae.architecture import Losses, Moment
from workbench.plugins.sae.architectures import ARCHITECTURES
from workbench.plugins.sae.factored import FactoredOptimiser, FactoredWeights
from workbench.plugins.sae.resampling import resample
from workbench.plugins.sae.settings import Settings
from workbench.plugins.sae.sites import Batch, Site
from workbench.plugins.sae.weights import Weights
from workbench.ranks import ALONE, Ranks, part_of

HISTORY = ("error", "penalty", "auxiliary", "l0", "dead", "lr")
CHECKS = 40  # looks at held-out rows in a training
SMALLEST_DECAY = 0.99  # of the mean of batches' smallest activations; SAELens's topk_threshold_lr is 0.01


class Diverged(UserError):
    """The error of a training is no longer a number."""


class Trainer:
    """A training under way.

    Parameters
    ----------
    settings : Settings
        All numbers.
    weights : Weights
        Where it starts; trained in place.
    site : Site
        What is read and written.
    variance : float
        Of an entry of the scaled rows that are written.
    validation : mapping of str to Tensor [rows, ...]
        Held-out rows of each hook point, looked at now and then.
    rng : callable, optional
        ``rng(name)`` gives a torch generator on the CPU, the same for the same name.

    Attributes
    ----------
    step, rows_done : int
        Progress.
    history : Tensor [steps, 6]
        For each step what `HISTORY` names: error, sparsity penalty, auxiliary loss, active latents of a row, number of
        dead latents, learning rate.
    checks : list of (int, float)
        Rows done and explained variance on `validation`.
    last_fired : int64 Tensor [latents]
        Rows done when a latent was last active.
    smallest : float64 Tensor [2]
        Decaying sums of batches' smallest activations, and of ones.
    failed : str
        Why it was given up, where others went on; empty otherwise.
    """

    def __init__(
        self,
        settings: Settings,
        weights: Weights,
        site: Site,
        variance: float,
        validation: Batch,
        rng: Callable[[str], torch.Generator] = lambda name: torch.Generator().manual_seed(0),
    ) -> None:
        self.settings, self.weights, self.site, self.variance = settings, weights, site, variance
        self.architecture = ARCHITECTURES[settings.architecture]
        self.device = weights.W_enc.device
        self.validation = site.take(validation, self.device)
        self.rng = rng
        self.optimiser: Optimiser
        if self.architecture.factored and settings.dtype == torch.float32:
            self.weights = FactoredWeights.of(weights)
            self.optimiser = FactoredOptimiser(self.weights, settings.beta1)
        else:
            self.optimiser = Adam(weights, settings.beta1)
        self.step = self.rows_done = 0
        self.history = torch.zeros(settings.n_steps, len(HISTORY), dtype=torch.float64)
        self.checks: list[tuple[int, float]] = []
        self.last_fired = torch.zeros(settings.latents, dtype=torch.int64, device=self.device)
        self.smallest = torch.zeros(2, dtype=torch.float64)
        self.failed = ""

    # --- a step ---------------------------------------------------------------------------------------------------
    def one_step(self, batch: Batch, ranks: Ranks = ALONE) -> None:
        """Take one step of Adam on rows [rows, ...] of each hook point, as the store has them.

        Of several processes, which must all have the same rows, each looks at its part; a batch that has fewer rows
        than there are processes is taken whole by each.
        """
        weights, settings = self.weights, self.settings
        n_rows = len(next(iter(batch.values())))
        ranks = ranks if n_rows >= ranks.size else ALONE
        part = part_of(ranks, n_rows)
        x, y = self.site.take({name: rows[part] for name, rows in batch.items()}, self.device)
        dead = self.dead()
        found = self.architecture.losses(x, y, weights, settings, self.moment(dead, n_rows, ranks))
        error = float(found.error)
        if not math.isfinite(error):
            raise Diverged(
                f"training has failed at row {self.rows_done:,}: the error is {error}; either the store holds NaN or "
                f"infinity, or the learning rate {settings.lr:.3g} is too high (train.lr)"
            )
        lr = settings.lr_at(self.rows_done)
        self.optimiser.step(found.total, lr, ranks)
        before, self.rows_done = self.rows_done, self.rows_done + n_rows
        self.note(found, len(dead), lr)
        if self.resamples(before):
            self.revive(torch.cat(ranks.gather(x)), torch.cat(ranks.gather(found.left)))

    def moment(self, dead: Tensor, n_rows: int, ranks: Ranks) -> Moment:
        """Return what this step is told."""
        at, settings = self.rows_done, self.settings
        return Moment(self.variance, dead, settings.k_at(at), settings.sparsity_at(at), n_rows, ranks)

    def dead_mask(self) -> Tensor:
        """Return which latents were not active for `dead_after` rows, bool [latents]."""
        return self.rows_done - self.last_fired > self.settings.dead_after

    def dead(self) -> Tensor:
        """Return the numbers of those latents."""
        return self.dead_mask().nonzero().squeeze(1)

    def note(self, found: Losses, n_dead: int, lr: float) -> None:
        """Write down what a step gave."""
        self.last_fired[found.fired] = self.rows_done
        if found.smallest is not None:
            self.smallest = SMALLEST_DECAY * self.smallest + torch.tensor([float(found.smallest), 1.0]).double()
        values = [float(found.error), float(found.penalty), float(found.auxiliary), float(found.l0), n_dead, lr]
        self.history[self.step] = torch.tensor(values, dtype=torch.float64)
        self.step += 1
        if self.step % max(1, self.settings.n_steps // CHECKS) == 0 or self.step == self.settings.n_steps:
            self.checks.append((self.rows_done, self.explained_variance()))

    def resamples(self, before: int) -> bool:
        """True if a resampling of dead latents falls between two numbers of rows: evenly, in the first half."""
        every = self.settings.rows / 2 / max(1, self.settings.resample)
        due, done = self.rows_done // every, before // every
        return due > done and due <= self.settings.resample

    def revive(self, x: Tensor, left: Tensor) -> None:
        """Give dead latents a new start on rows that are reconstructed badly."""
        dead = self.dead()
        with torch.no_grad():
            resample(self.weights, dead, x, left, self.rng(f"resample {self.step}"))
            self.architecture.restart(self.weights, dead)
        self.optimiser.forget(dead)
        self.last_fired[dead] = self.rows_done

    # --- what has become of it ------------------------------------------------------------------------------------
    def inference(self) -> dict[str, Any]:
        """Return `activation`, `k` and `threshold` of the dictionary as it stands."""
        total, count = self.smallest.tolist()
        return self.architecture.inference(self.weights, self.settings, total / count if count else 0.0)

    @torch.no_grad()
    def explained_variance(self) -> float:
        """Return the share of the validation rows' variance that the dictionary as it stands explains."""
        x, y = self.validation
        dictionary = self.site.scaled().dictionary(self.weights, self.inference())
        error = (y - dictionary.reconstruct(x)).pow(2).mean()
        return float(1 - error / (y - y.mean(0)).pow(2).mean())

    # --- checkpoints ----------------------------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return everything that the next step depends on: tensors, and JSON values."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.weights.named().items()}
        tensors |= self.optimiser.state()
        tensors |= {"history": self.history, "last_fired": self.last_fired, "smallest": self.smallest}
        progress = {"step": self.step, "rows_done": self.rows_done, "checks": self.checks, "failed": self.failed}
        return tensors, {**self.identity(), **progress}

    def identity(self) -> dict[str, Any]:
        """Return what two trainings must have in common for one to go on with the other's state."""
        return {"settings": self.settings.to_json(), "site": self.site.to_json(), "variance": self.variance}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        with torch.no_grad():
            for name, parameter in self.weights.named().items():
                parameter.copy_(tensors[name])
        self.optimiser.load(tensors)
        self.history, self.smallest = tensors["history"], tensors["smallest"]
        self.last_fired = tensors["last_fired"].to(self.last_fired.device)
        self.step, self.rows_done, self.failed = values["step"], values["rows_done"], values["failed"]
        self.checks = [tuple(check) for check in values["checks"]]
