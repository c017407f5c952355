"""Adam, with moments that can be saved, and what keeps decoder rows at length 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

from workbench.plugins.sae.weights import Weights
from workbench.ranks import ALONE, Ranks, added

ADAM_BETA2 = 0.999
ADAM_EPSILON = 6.25e-10  # Gao et al. 2024; gradients of a normalised error are small


class Optimiser(Protocol):
    """What moves a training's weights, in place."""

    def step(self, loss: Tensor, lr: float, ranks: Ranks = ALONE) -> None:
        """Move the weights against the gradient of a loss, summed over processes; decoder rows stay at length 1."""

    def forget(self, latents: Tensor) -> None:
        """Set the moments of some latents to zero, in every parameter that has a row for each."""

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts by name."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the moments and step counts from what `state` gave; other names are passed over."""


class Adam:
    """Adam (Kingma & Ba 2015) by torch's own functional form; the class of `torch.optim` imports torch's compiler.

    Parameters
    ----------
    weights : Weights
        To be moved.
    beta1 : float
        Decay of the first moment; of the second it is 0.999.
    """

    def __init__(self, weights: Weights, beta1: float) -> None:
        self.parameters, self.beta1 = weights.named(), beta1
        for tensor in self.parameters.values():
            tensor.requires_grad_()
        self.first = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.second = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.steps = {name: torch.zeros((), device=parameter.device) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def step(self, loss: Tensor, lr: float, ranks: Ranks = ALONE) -> None:
        """See `Optimiser.step`."""
        W_dec = self.parameters["W_dec"]
        found = torch.autograd.grad(loss, list(self.parameters.values()), materialize_grads=True)
        grads = {name: added(ranks, grad) for name, grad in zip(self.parameters, found, strict=True)}
        remove_parallel(grads["W_dec"], W_dec)
        adam(
            list(self.parameters.values()),
            list(grads.values()),
            list(self.first.values()),
            list(self.second.values()),
            [],
            list(self.steps.values()),
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=ADAM_BETA2,
            lr=lr,
            weight_decay=0.0,
            eps=ADAM_EPSILON,
            maximize=False,
        )
        set_length(W_dec)

    def forget(self, latents: Tensor) -> None:
        """See `Optimiser.forget`."""
        n_latents = len(self.parameters["b_enc"])
        for name, parameter in self.parameters.items():
            if name != "b_dec" and len(parameter) == n_latents:
                self.first[name][latents] = 0
                self.second[name][latents] = 0

    def state(self) -> dict[str, Tensor]:
        """See `Optimiser.state`."""
        parts = {"first": self.first, "second": self.second, "steps": self.steps}
        return {f"adam.{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Optimiser.load`."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])


def remove_parallel(grad: Tensor, W_dec: Tensor) -> None:
    """Take from the gradient of each decoder row its part along the row, which would only change the row's length."""
    grad -= (grad * W_dec).sum(1, keepdim=True) * W_dec


def set_length(W_dec: Tensor) -> None:
    """Bring decoder rows to length 1."""
    W_dec /= W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
