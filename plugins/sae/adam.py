"""Adam, with moments that can be saved, and what keeps decoder rows at length 1."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

ADAM_EPSILON = 6.25e-10  # Gao et al. 2024; gradients of a normalised error are small


class Adam:
    """Adam (Kingma & Ba 2015) by torch's own functional form; the class of `torch.optim` imports torch's compiler.

    Parameters
    ----------
    parameters : dict of str to Tensor
        Moved in place, against their ``grad``.
    beta1 : float
        Decay of the first moment; of the second it is 0.999.
    """

    def __init__(self, parameters: dict[str, Tensor], beta1: float) -> None:
        self.parameters, self.beta1 = parameters, beta1
        self.first = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.second = {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}
        self.steps = {name: torch.zeros((), device=parameter.device) for name, parameter in self.parameters.items()}

    def step(self, lr: float) -> None:
        """Move the parameters against their gradients."""
        adam(
            list(self.parameters.values()),
            [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None],
            list(self.first.values()),
            list(self.second.values()),
            [],
            list(self.steps.values()),
            fused=True,
            amsgrad=False,
            beta1=self.beta1,
            beta2=0.999,
            lr=lr,
            weight_decay=0.0,
            eps=ADAM_EPSILON,
            maximize=False,
        )

    def forget(self, latents: Tensor) -> None:
        """Set the moments of some latents to zero, in every parameter that has a row for each."""
        n_latents = len(self.parameters["b_enc"])
        for name, parameter in self.parameters.items():
            if name != "b_dec" and len(parameter) == n_latents:
                self.first[name][latents] = 0
                self.second[name][latents] = 0

    def state(self) -> dict[str, Tensor]:
        """Return the moments and step counts by name."""
        parts = {"first": self.first, "second": self.second, "steps": self.steps}
        return {f"adam.{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the moments and step counts from what `state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])


def remove_parallel(W_dec: Tensor) -> None:
    """Take from the gradient of each decoder row its part along the row, which would only change the row's length."""
    assert W_dec.grad is not None
    W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec


def set_length(W_dec: Tensor) -> None:
    """Bring decoder rows to length 1."""
    W_dec /= W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
