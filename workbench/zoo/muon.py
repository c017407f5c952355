"""Muon: momentum whose update is orthogonalised, for the matrices inside a network.

Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). torch has one from 2.9 on; the
package supports older versions, and a zoo subject must come out the same on each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# Coefficients of the quintic whose iterates send singular values in (0, 1] to about one; from the source.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(gradient: Tensor, iterations: int = 5) -> Tensor:
    """Return a matrix with the same singular vectors and singular values of about one (0.7 to 1.2).

    Parameters
    ----------
    gradient : Tensor [rows, columns]
        Any matrix.
    iterations : int
        Newton-Schulz steps, at least 1.
    """
    a, b, c = QUINTIC
    wide = gradient.shape[0] <= gradient.shape[1]
    x = gradient if wide else gradient.T
    x = (x / (torch.linalg.matrix_norm(x) + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    found: Tensor = x if wide else x.T
    return found.to(gradient.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay.

    Parameters
    ----------
    params : iterable of Tensor
        Matrices [rows, columns] only; embeddings, norms and biases belong to another optimizer.
    lr : float
        Step, in units of the spectral norm (scaled by ``sqrt(max(1, rows / columns))``).
    momentum : float
        In [0, 1).
    weight_decay : float
        Shrinks the weights by ``lr * weight_decay`` a step.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update every matrix from its gradient; `closure`, if given, is called first and its loss returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                buffer = state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonalise(weight.grad.lerp(buffer, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5)
        return loss
