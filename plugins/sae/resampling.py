"""Dead latents begin again on rows that are reconstructed badly."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.plugins.sae.weights import Weights

ENCODER_SHARE = 0.2  # of the mean length of living latents' encoder rows


def resample(weights: Weights, dead: Tensor, x: Tensor, left: Tensor, generator: torch.Generator) -> None:
    """Start dead latents anew, in place.

    Parameters
    ----------
    weights : Weights
        Of the training.
    dead : int64 Tensor [n]
        Which latents; none is allowed.
    x : Tensor [rows, width read]
        A batch, scaled.
    left : Tensor [rows, width written]
        What the reconstruction leaves of the rows.
    generator : torch.Generator
        On the CPU.

    Notes
    -----
    As Bricken et al. 2023: rows are drawn with a chance in proportion to the square of their squared error; a latent's
    decoder becomes the row itself, at length 1, its encoder the same at a fifth of the mean length of the living ones,
    its bias 0. Here the decoder is what is left of the row, which is also defined where a row is read from another
    hook point than it is written to.
    """
    if not len(dead):
        return
    chance = left.pow(2).sum(1).double().pow(2).cpu()
    if not float(chance.sum()):
        return
    drawn = torch.multinomial(chance, len(dead), replacement=True, generator=generator).to(x.device)
    alive = torch.ones(len(weights.b_enc), dtype=torch.bool, device=x.device)
    alive[dead] = False
    length = weights.W_enc[alive].norm(dim=1).mean() if bool(alive.any()) else weights.W_enc.norm(dim=1).mean()
    read = left[drawn] if weights.b_pre is None else weights.centred(x[drawn])
    weights.W_enc[dead] = ENCODER_SHARE * length * torch.nn.functional.normalize(read, dim=1)
    weights.W_dec[dead] = torch.nn.functional.normalize(left[drawn], dim=1)
    weights.b_enc[dead] = 0
