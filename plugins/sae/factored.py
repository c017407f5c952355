"""Weights whose gradients stay sums of outer products, and the optimiser that uses these up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from workbench.kernels.training import FactoredAdam, LatentMatrix
from workbench.kernels.updating import Factor
from workbench.plugins.sae.adam import ADAM_BETA2, ADAM_EPSILON
from workbench.plugins.sae.weights import Weights
from workbench.ranks import ALONE, Ranks, added


@dataclass
class FactoredWeights(Weights):
    """Weights in float32 that are used through `encode`, `decode` and `error` alone: no gradient [latents, width].

    Attributes
    ----------
    encoder, decoder : LatentMatrix
        `W_enc` with `b_enc`, and `W_dec`: the same memory.
    """

    encoder: LatentMatrix = field(init=False)
    decoder: LatentMatrix = field(init=False)

    def __post_init__(self) -> None:
        self.encoder = LatentMatrix(self.W_enc, self.b_enc)
        self.decoder = LatentMatrix(self.W_dec, unit_rows=True)

    @classmethod
    def of(cls, weights: Weights) -> FactoredWeights:
        """Return the same weights, in the same memory."""
        return cls(**{part.name: getattr(weights, part.name) for part in fields(Weights)})

    def centred(self, x: Tensor) -> Tensor:
        """See `Weights.centred`; outside the graph, for `encode` sees to the pre-bias's gradient."""
        return super().centred(x).detach()

    def encode(self, centred: Tensor, k: int, *, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Weights.encode`."""
        # The auxiliary loss, which alone chooses among some latents, does not reach the pre-bias.
        centre = self.b_dec if self.b_pre is None and among is None else None
        return self.encoder.encode(centred, k, centre=centre, among=among, taken=True)

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """See `Weights.decode`."""
        return self.decoder.decode(values, indices)

    def error(self, values: Tensor, indices: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """See `Weights.error`; what is left is outside the graph."""
        errors, left = self.decoder.decode_error(values, indices, self.b_dec, y)
        return errors.mean() / y.shape[1], left


class FactoredOptimiser:
    """Adam with projection and decoder normalisation inside the loop that sums gradients; see `adam.Optimiser`."""

    def __init__(self, weights: FactoredWeights, beta1: float) -> None:
        for tensor in (weights.b_dec, *weights.extra.values()):
            tensor.requires_grad_()
        self.adam = FactoredAdam(
            {"W_enc": weights.encoder, "W_dec": weights.decoder},
            {"b_dec": weights.b_dec, **weights.extra},
            lr=0.0,
            betas=(beta1, ADAM_BETA2),
            eps=ADAM_EPSILON,
        )

    def step(self, loss: Tensor, lr: float, ranks: Ranks = ALONE) -> None:
        """See `adam.Optimiser.step`; processes exchange factors, and sum them as one would that has all rows."""
        torch.autograd.backward(loss)
        if ranks.size > 1:
            for matrix in self.adam.matrices.values():
                matrix.factors = [gathered(ranks, factor) for factor in matrix.factors]
            for tensor in self.adam.others.values():
                if tensor.grad is not None:
                    tensor.grad = added(ranks, tensor.grad)
        self.adam.step(lr)

    def forget(self, latents: Tensor) -> None:
        """See `adam.Optimiser.forget`."""
        self.adam.forget(latents)

    def state(self) -> dict[str, Tensor]:
        """See `adam.Optimiser.state`."""
        return {f"adam.{name}": tensor for name, tensor in self.adam.state().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `adam.Optimiser.load`."""
        self.adam.load({name.removeprefix("adam."): tensor for name, tensor in tensors.items()})


def gathered(ranks: Ranks, factor: Factor) -> Factor:
    """Return a part of a gradient over the rows of all processes, in the order of their ranks."""
    values, indices, rows = (torch.cat(ranks.gather(part)) for part in (factor.values, factor.indices, factor.rows))
    return Factor(values, indices, rows)
