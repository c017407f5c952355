"""Standard (Bricken et al. 2023) and Gated (Rajamanoharan et al. 2024) autoencoders: ReLU and an L1 penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.plugins.sae.architecture import Architecture, Codes, DenseCodes, Moment
from workbench.plugins.sae.settings import Settings
from workbench.plugins.sae.weights import Weights


def l1_penalty(values: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Tensor:
    """Return the L1 penalty of activations [rows, latents], to be added to the error as a share of the variance.

    `sparsity` weighs it against the summed squared error on rows at a distance of 1 from their mean (root mean square).
    """
    if len(settings.parts) > 1:
        values = values * summed_lengths(weights.W_dec, settings.parts)
    penalty: Tensor = moment.sparsity * values.sum(1).mean() / (settings.width_out * moment.variance) ** 0.5
    return penalty


def summed_lengths(W_dec: Tensor, parts: tuple[int, ...]) -> Tensor:
    """Return the lengths of each latent's decoder rows, summed over hook points of given widths, [latents].

    What a crosscoder's activations are weighed by in the penalty (Lindsey et al. 2024): a latent that writes to many
    hook points costs more than one of the same length that writes to one.
    """
    return torch.stack([part.norm(dim=1) for part in torch.split(W_dec, list(parts), dim=1)]).sum(0)


class Standard(Architecture):
    """All positive scores, and an L1 penalty on them."""

    def encode(self, centred: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Codes:
        """See `Architecture.encode`."""
        return DenseCodes(torch.addmm(weights.b_enc, centred, weights.W_enc.T).relu())

    def penalty(self, codes: Codes, y: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Tensor:
        """See `Architecture.penalty`."""
        assert isinstance(codes, DenseCodes)
        return l1_penalty(codes.values, weights, settings, moment)

    def inference(self, weights: Weights, settings: Settings, smallest: float) -> dict[str, Any]:
        """See `Architecture.inference`."""
        return {"activation": "relu"}


@dataclass(frozen=True)
class GatedCodes(DenseCodes):
    """Activations with the scores [rows, latents] of their gates, ReLU taken."""

    gates: Tensor


class Gated(Architecture):
    """One product for gate and magnitude, the penalty on the gate alone (arXiv:2404.16014).

    Notes
    -----
    A latent is active where its gate's score is positive, and its activation is exp(r) times the score without the
    gate's bias, plus a bias of its own. Gates learn from a second reconstruction, of the ReLU of their scores through a
    decoder that does not learn from it. Once trained it is a JumpReLU dictionary: where the gate opens, the magnitude
    passes a threshold.
    """

    def extra(self, sample: Tensor, weights: Weights, settings: Settings) -> dict[str, Tensor]:
        """See `Architecture.extra`."""
        zeros = torch.zeros_like(weights.b_enc, requires_grad=False)
        return {"r_mag": zeros, "b_mag": zeros.clone()}

    def restart(self, weights: Weights, latents: Tensor) -> None:
        """See `Architecture.restart`."""
        for tensor in weights.extra.values():
            tensor[latents] = 0

    def encode(self, centred: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Codes:
        """See `Architecture.encode`."""
        product = centred @ weights.W_enc.T
        scores = product + weights.b_enc
        magnitudes = (product * weights.extra["r_mag"].exp() + weights.extra["b_mag"]).relu()
        return GatedCodes(magnitudes * (scores > 0), scores.relu())

    def error(self, codes: Codes, y: Tensor, weights: Weights, settings: Settings) -> tuple[Tensor, Tensor]:
        """See `Architecture.error`; with the gates' own reconstruction."""
        assert isinstance(codes, GatedCodes)
        squared, left = super().error(codes, y, weights, settings)
        by_gates = codes.gates @ weights.W_dec.detach() + weights.b_dec.detach()
        return squared + (y - by_gates.to(y.dtype)).pow(2).mean(), left

    def penalty(self, codes: Codes, y: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Tensor:
        """See `Architecture.penalty`."""
        assert isinstance(codes, GatedCodes)
        return l1_penalty(codes.gates, weights, settings, moment)

    def inference(self, weights: Weights, settings: Settings, smallest: float) -> dict[str, Any]:
        """See `Architecture.inference`."""
        gain, b_mag = weights.extra["r_mag"].detach().exp(), weights.extra["b_mag"].detach()
        return {
            "activation": "jumprelu",
            "W_enc": gain[:, None] * weights.W_enc.detach(),
            "b_enc": b_mag,
            "threshold": b_mag - gain * weights.b_enc.detach(),
        }
