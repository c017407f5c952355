"""The TopK autoencoder's loss, and where its weights start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.kernels.topk import sparse_decode, topk_encode
from workbench.plugins.sae.settings import Settings

MEDIAN_STEPS = 32


@dataclass
class Weights:
    """Parameters of the autoencoder, on inputs already scaled; `b_dec` is also taken from the input (the pre-bias)."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def named(self) -> dict[str, Tensor]:
        """Return the parameters by name."""
        return {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}


@dataclass(frozen=True)
class Losses:
    """What one batch gives.

    Attributes
    ----------
    total : Tensor
        To be differentiated.
    error : Tensor
        Squared error as a share of the rows' variance: 1 − explained variance.
    auxiliary : Tensor
        Squared error of the dead latents' reconstruction of what is left, as a share of that; 0 if none is dead.
    fired : int64 Tensor
        Active latents of all rows, one after another.
    """

    total: Tensor
    error: Tensor
    auxiliary: Tensor
    fired: Tensor


def losses(x: Tensor, weights: Weights, variance: float, dead: Tensor, settings: Settings) -> Losses:
    """Reconstruction error, and the auxiliary loss that revives dead latents.

    Parameters
    ----------
    x : Tensor [rows, width]
        Scaled inputs.
    weights : Weights
        Current parameters.
    variance : float
        Mean squared deviation of an entry of x, which the error is divided by.
    dead : int64 Tensor [n]
        Dead latents.
    settings : Settings
        k, aux_k, aux_weight.

    Notes
    -----
    The auxiliary loss is AuxK of Gao et al. 2024 (arXiv:2406.04093): what the reconstruction leaves over is itself
    reconstructed from the `aux_k` best of the dead latents. These are chosen among the dead latents' gathered weights,
    so that no [rows, latents] matrix is formed.
    """
    centred = x - weights.b_dec
    values, indices = topk_encode(centred, weights.W_enc, weights.b_enc, settings.k)
    left = x - sparse_decode(values.relu(), indices, weights.W_dec, weights.b_dec)
    error = left.pow(2).mean() / variance
    auxiliary = torch.zeros((), dtype=x.dtype, device=x.device)
    if settings.aux_k and settings.aux_weight and len(dead):
        target = left.detach()
        k = min(settings.aux_k, len(dead))
        values_dead, chosen = topk_encode(centred.detach(), weights.W_enc[dead], weights.b_enc[dead], k)
        again = sparse_decode(values_dead.relu(), chosen, weights.W_dec[dead])
        auxiliary = (again - target).pow(2).mean() / target.pow(2).mean().clamp_min(1e-12)
    return Losses(error + settings.aux_weight * auxiliary, error.detach(), auxiliary.detach(), indices[values > 0])


def start(sample: Tensor, settings: Settings, generator: torch.Generator) -> Weights:
    """Return the weights before the first step.

    Parameters
    ----------
    sample : Tensor [rows, width]
        Scaled training rows.
    settings : Settings
        Sizes, and how the pre-bias starts.
    generator : torch.Generator
        On the CPU, so that every device starts alike.

    Notes
    -----
    Decoder rows are random unit vectors and the encoder is their copy, as in Gao et al. 2024, times the factor with
    which the first reconstruction has the least error.
    """
    centre = sample.mean(0) if settings.centre == "mean" else geometric_median(sample)
    W_dec = torch.randn(settings.latents, settings.width, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    W_dec = W_dec.to(sample.device)
    values, indices = topk_encode(sample - centre, W_dec, W_dec.new_zeros(settings.latents), settings.k)
    first = sparse_decode(values.relu(), indices, W_dec)
    factor = ((sample - centre) * first).sum() / first.pow(2).sum().clamp_min(1e-12)
    return Weights(factor * W_dec, W_dec.new_zeros(settings.latents), W_dec, centre)


def geometric_median(x: Tensor) -> Tensor:
    """Return the point with the smallest summed distance to the rows of x [rows, width], by Weiszfeld's iteration."""
    centre = x.mean(0)
    for _ in range(MEDIAN_STEPS):
        nearness = 1 / (x - centre).norm(dim=1).clamp_min(1e-6)
        centre = (x * nearness[:, None]).sum(0) / nearness.sum()
    return centre
