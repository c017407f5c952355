"""What the architectures of the family have in common: one loss, made of parts that each fills in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.dictionary import Activation
from workbench.kernels.topk import sparse_decode
from workbench.plugins.sae.settings import Settings
from workbench.plugins.sae.weights import Weights
from workbench.ranks import ALONE, Ranks, added


@dataclass(frozen=True)
class Moment:
    """What changes from step to step.

    Attributes
    ----------
    variance : float
        Mean squared deviation of an entry of what is reconstructed, which the error is divided by.
    dead : int64 Tensor [n]
        Dead latents.
    k : int
        Active latents per row, or their target.
    sparsity : float
        Weight of the sparsity penalty.
    n_rows : int, optional
        Rows of the whole step, where several processes have a part of them each.
    ranks : Ranks
        These processes.
    """

    variance: float
    dead: Tensor
    k: int
    sparsity: float = 0.0
    n_rows: int | None = None
    ranks: Ranks = ALONE

    def rows(self, here: Tensor) -> int:
        """Return the rows of the whole step, given those of this process."""
        return len(here) if self.n_rows is None else self.n_rows

    def mean(self, means: Tensor, here: Tensor) -> Tensor:
        """Return means over the rows of the whole step, given those over the rows of this process."""
        if self.ranks.size == 1:
            return means
        return added(self.ranks, means * (len(here) / self.rows(here)))

    def any(self, latents: Tensor) -> Tensor:
        """Return which latents, int64, some process has."""
        if self.ranks.size == 1:
            return latents
        return torch.cat(self.ranks.gather(latents.bincount().nonzero().squeeze(1)))

    def least(self, value: Tensor | None) -> Tensor | None:
        """Return the smallest of what the processes have; None is nothing."""
        if self.ranks.size == 1:
            return value
        none = torch.zeros(0, device=self.dead.device)
        found = torch.cat(self.ranks.gather(none if value is None else value.detach().float().view(1)))
        return found.min() if len(found) else None


class Codes(ABC):
    """Activations of a batch, in the graph."""

    @abstractmethod
    def decode(self, W_dec: Tensor) -> Tensor:
        """Return their sums of decoder rows [rows, width]."""

    @abstractmethod
    def fired(self) -> Tensor:
        """Return the latents that are active on some row, int64; may repeat."""

    @abstractmethod
    def l0(self) -> Tensor:
        """Return the mean number of active latents of a row."""


@dataclass(frozen=True)
class SparseCodes(Codes):
    """A few latents per row.

    Attributes
    ----------
    values : Tensor [rows, n]
        Activations, zero where a row has fewer.
    indices : int64 Tensor [rows, n]
        Their latents.
    """

    values: Tensor
    indices: Tensor

    def decode(self, W_dec: Tensor) -> Tensor:
        """See `Codes.decode`."""
        return sparse_decode(self.values, self.indices, W_dec)

    def fired(self) -> Tensor:
        """See `Codes.fired`."""
        return self.indices[self.values > 0]

    def l0(self) -> Tensor:
        """See `Codes.l0`."""
        return (self.values > 0).sum(1).float().mean()


@dataclass(frozen=True)
class DenseCodes(Codes):
    """Every latent's activation, for architectures in which many are active at first.

    Attributes
    ----------
    values : Tensor [rows, latents]
        Activations.
    """

    values: Tensor

    def decode(self, W_dec: Tensor) -> Tensor:
        """See `Codes.decode`."""
        return self.values @ W_dec

    def fired(self) -> Tensor:
        """See `Codes.fired`."""
        return (self.values > 0).any(0).nonzero().squeeze(1)

    def l0(self) -> Tensor:
        """See `Codes.l0`."""
        return (self.values > 0).sum(1).float().mean()


@dataclass(frozen=True)
class Losses:
    """What one batch gives.

    Attributes
    ----------
    total : Tensor
        To be differentiated; where there are several processes, the share of this one: the sum is that of all.
    error : Tensor
        Squared error as a share of the rows' variance: 1 − explained variance.
    penalty : Tensor
        The sparsity penalty, weight included; 0 where there is none.
    auxiliary : Tensor
        Squared error of the dead latents' reconstruction of what is left, as a share of that; 0 if none is dead.
    l0 : Tensor
        Mean number of active latents of a row.
    fired : int64 Tensor
        Active latents of all rows, one after another; like the numbers above, of all processes.
    smallest : Tensor, optional
        Smallest activation of the batch, where one threshold for all latents is estimated from it.
    left : Tensor [rows, width]
        What the reconstruction leaves over of the rows of this process, outside the graph.
    """

    total: Tensor
    error: Tensor
    penalty: Tensor
    auxiliary: Tensor
    l0: Tensor
    fired: Tensor
    left: Tensor
    smallest: Tensor | None = None


class Architecture(ABC):
    """One kind of sparse autoencoder: how it encodes, what it is penalised for, what it becomes once trained.

    Attributes
    ----------
    factored : bool
        Whether it uses its matrices only through `Weights.encode`, `decode` and `error`, so that these may keep
        gradients as factors.
    """

    factored = False

    def extra(self, sample: Tensor, weights: Weights, settings: Settings) -> dict[str, Tensor]:
        """Return the start of the parameters that it alone trains, each [latents]; sample [rows, width read]."""
        return {}

    def restart(self, weights: Weights, latents: Tensor) -> None:
        """Bring its own parameters of some latents back to a start, in place: dead ones that begin anew."""
        return

    @abstractmethod
    def encode(self, centred: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Codes:
        """Return the activations of rows [rows, width read] that the pre-bias was taken from, as in training."""

    @abstractmethod
    def inference(self, weights: Weights, settings: Settings, smallest: float) -> dict[str, Any]:
        """Return what a trained dictionary is beside its weights: `activation`, and its `k` or `threshold`."""

    def error(self, codes: Codes, y: Tensor, weights: Weights, settings: Settings) -> tuple[Tensor, Tensor]:
        """Return the squared error that is trained on, mean of an entry, and what is left over [rows, width]."""
        left = y - (codes.decode(weights.W_dec) + weights.b_dec).to(y.dtype)
        return left.pow(2).mean(), left

    def penalty(self, codes: Codes, y: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Tensor:
        """Return the sparsity penalty, to be added to the error as a share of the variance."""
        return y.new_zeros(())

    def smallest(self, codes: Codes) -> Tensor | None:
        """Return the smallest activation of the batch, where the trained dictionary's threshold comes from it."""
        return None

    def losses(self, x: Tensor, y: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Losses:
        """Return reconstruction error, sparsity penalty, and the auxiliary loss that revives dead latents.

        Parameters
        ----------
        x, y : Tensor [rows, width]
            What is read and what is to be reconstructed, scaled; the same for an autoencoder.
        weights : Weights
            Current parameters.
        settings : Settings
            Of the training.
        moment : Moment
            Of this step.
        """
        weights = weights.to(settings.dtype)
        centred = weights.centred(x.to(settings.dtype))
        codes = self.encode(centred, weights, settings, moment)
        squared, left = self.error(codes, y, weights, settings)
        error = squared / moment.variance
        penalty = self.penalty(codes, y, weights, settings, moment)
        target = left.detach()
        reached = moment.mean(target.pow(2).mean(), x)
        auxiliary = self.auxiliary(centred.detach(), target, reached, weights, settings, moment)
        total = error + penalty + settings.aux_weight * auxiliary
        said = [each.detach().float() for each in (penalty, auxiliary, codes.l0())]
        of_all = moment.mean(torch.stack(said), x)
        return Losses(
            total=total if moment.ranks.size == 1 else total * (len(x) / moment.rows(x)),  # their sum is that of all
            error=reached / moment.variance,
            penalty=of_all[0],
            auxiliary=of_all[1],
            l0=of_all[2],
            fired=moment.any(codes.fired()),
            left=target,
            smallest=moment.least(self.smallest(codes)),
        )

    def auxiliary(
        self,
        centred: Tensor,
        target: Tensor,
        left_over: Tensor,
        weights: Weights,
        settings: Settings,
        moment: Moment,
    ) -> Tensor:
        """Return the error with which dead latents reconstruct what is left, as a share of that, `left_over`.

        Notes
        -----
        AuxK of Gao et al. 2024 (arXiv:2406.04093): what the reconstruction leaves over is itself reconstructed from the
        `aux_k` best of the dead latents. These are chosen among the dead latents' gathered weights, so that no
        [rows, latents] matrix is formed.
        """
        dead = moment.dead
        if not (settings.aux_k and settings.aux_weight and len(dead)):
            return target.new_zeros(())
        k = min(settings.aux_k, len(dead))
        values, chosen = weights.encode(centred, k, among=dead)
        again = weights.decode(values.relu(), chosen).to(target.dtype)
        return (again - target).pow(2).mean() / left_over.clamp_min(1e-12)


def same_threshold(weights: Weights, smallest: float) -> dict[str, Any]:
    """Return the inference of a dictionary whose latents share one threshold."""
    activation: Activation = "jumprelu"
    threshold = torch.full_like(weights.b_enc, smallest, requires_grad=False)
    return {"activation": activation, "threshold": threshold}
