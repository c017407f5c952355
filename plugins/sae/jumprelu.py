"""JumpReLU (Rajamanoharan et al. 2024): a threshold for each latent, trained through the jump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.plugins.sae.architecture import Architecture, Codes, DenseCodes, Moment
from workbench.plugins.sae.selection import batch_topk
from workbench.plugins.sae.settings import Settings
from workbench.plugins.sae.weights import Weights

TANH_SCALE = 4.0


class JumpReLU(Architecture):
    """Scores above their latent's threshold (arXiv:2407.14435), with one of three penalties.

    Notes
    -----
    The threshold is trained as its logarithm. By default it starts where `k` scores of a row are above it on average:
    from the paper's 0.001 it has to travel a hundredfold, which takes more steps than a training on a store has.

    Neither the jump nor the count of active latents has a useful derivative by the threshold; estimators with a
    rectangular kernel of width ε stand in for them (the paper's equations 11 and 12). Penalties, on the activations f
    of a row, each times the weight `sparsity`:

    ``quadratic``
        (‖f‖₀ / k − 1)², the paper's way to a given number of active latents.
    ``l0``
        ‖f‖₀, the paper's main form.
    ``tanh``
        Σ tanh(4 |f|), as Anthropic trains them (January 2025): its derivative, and that of the estimators, reaches
        the encoder too.
    """

    def extra(self, sample: Tensor, weights: Weights, settings: Settings) -> dict[str, Tensor]:
        """See `Architecture.extra`."""
        threshold = settings.threshold
        if threshold is None:
            n = settings.k_at(0) * len(sample)
            values, _ = batch_topk(weights.centred(sample), weights.W_enc, weights.b_enc, n)
            active = values.detach()[values > 0]
            threshold = float(active.min()) if len(active) else 1.0
        return {"log_threshold": torch.full_like(weights.b_enc, threshold).log()}

    def restart(self, weights: Weights, latents: Tensor) -> None:
        """See `Architecture.restart`."""
        weights.extra["log_threshold"][latents] = weights.extra["log_threshold"].mean()

    def encode(self, centred: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Codes:
        """See `Architecture.encode`."""
        scores = torch.addmm(weights.b_enc, centred, weights.W_enc.T)
        threshold = weights.extra["log_threshold"].exp()
        values = Jump.apply(scores, threshold, settings.bandwidth, settings.penalty == "tanh")  # type: ignore[no-untyped-call]
        return JumpCodes(values, scores, threshold)

    def penalty(self, codes: Codes, y: Tensor, weights: Weights, settings: Settings, moment: Moment) -> Tensor:
        """See `Architecture.penalty`."""
        assert isinstance(codes, JumpCodes)
        if settings.penalty == "tanh":
            return moment.sparsity * (TANH_SCALE * codes.values).tanh().sum(1).mean()
        l0 = Step.apply(codes.scores, codes.threshold, settings.bandwidth).sum(1)  # type: ignore[no-untyped-call]
        per_row = l0 if settings.penalty == "l0" else (l0 / moment.k - 1).pow(2)
        penalty: Tensor = moment.sparsity * per_row.mean()
        return penalty

    def inference(self, weights: Weights, settings: Settings, smallest: float) -> dict[str, Any]:
        """See `Architecture.inference`."""
        return {"activation": "jumprelu", "threshold": weights.extra["log_threshold"].detach().exp()}


@dataclass(frozen=True)
class JumpCodes(DenseCodes):
    """Activations with the scores [rows, latents] and thresholds [latents] that they come from."""

    scores: Tensor
    threshold: Tensor


def inside(scores: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return 1 where a score is less than half a bandwidth from its threshold, else 0."""
    return ((scores - threshold).abs() < bandwidth / 2).to(scores.dtype)


class Jump(torch.autograd.Function):
    """scores · [scores > threshold], with the estimated derivative by the threshold."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: Tensor, bandwidth: float, to_scores: bool) -> Tensor:
        """Return activations [rows, latents]."""
        ctx.save_for_backward(scores, threshold)
        ctx.bandwidth, ctx.to_scores = bandwidth, to_scores
        return scores * (scores > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return gradients by scores and threshold; the estimate reaches the scores too if asked for."""
        scores, threshold = ctx.saved_tensors
        estimate = inside(scores, threshold, ctx.bandwidth) * grad * (threshold / ctx.bandwidth)
        by_scores = grad * (scores > threshold)
        return by_scores + estimate if ctx.to_scores else by_scores, -estimate.sum(0), None, None


class Step(torch.autograd.Function):
    """[scores > threshold], with the estimated derivative by the threshold; none by the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        """Return ones and zeros [rows, latents]."""
        ctx.save_for_backward(scores, threshold)
        ctx.bandwidth = bandwidth
        return (scores > threshold).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        """Return the gradient by the threshold."""
        scores, threshold = ctx.saved_tensors
        return None, -(inside(scores, threshold, ctx.bandwidth) * grad).sum(0) / ctx.bandwidth, None
