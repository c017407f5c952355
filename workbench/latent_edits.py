"""Single latents of a dictionary as edits of a live subject: pushed, held at a value, taken away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.splice import rewriting
from workbench.subjects.protocol import Edit

if TYPE_CHECKING:
    from workbench.dictionary import Dictionary


def steering(dictionary: Dictionary, latent: int, by: float, *, special: bool = False) -> dict[str, Edit]:
    """Return edits that add what a latent would write if its activation were `by` higher; see `Dictionary.steer`."""
    check_latents(dictionary, [latent])

    def rewrite(held: Dictionary, x: Tensor, there: Tensor) -> Tensor:
        return there + written(held, x, torch.full((len(x), 1), by, device=x.device), [latent])

    return rewriting(dictionary, rewrite, special=special)


def clamping(dictionary: Dictionary, to: Mapping[int, float], *, special: bool = False) -> dict[str, Edit]:
    """Return edits that hold latents at activations, all else unchanged; see `Dictionary.clamp`, `Dictionary.ablate`.

    Parameters
    ----------
    dictionary : Dictionary
        Of any kind that reconstructs one hook point.
    to : mapping of int to float
        Latent to activation, in its own units.
    special : bool
        At special tokens too.
    """
    latents = list(to)
    check_latents(dictionary, latents)

    def rewrite(held: Dictionary, x: Tensor, there: Tensor) -> Tensor:
        now = activations(held, x, latents)
        wanted = torch.tensor([to[latent] for latent in latents], device=x.device)
        return there + written(held, x, wanted - now, latents)

    return rewriting(dictionary, rewrite, special=special)


def check_latents(dictionary: Dictionary, latents: list[int]) -> None:
    """Refuse latents that a dictionary does not have."""
    if not latents:
        raise UserError(f"no latent given: dictionary {dictionary.address} has 0 to {dictionary.n_latents - 1}")
    for latent in latents:
        if not 0 <= latent < dictionary.n_latents:
            raise UserError(f"latent {latent}: dictionary {dictionary.address} has 0 to {dictionary.n_latents - 1}")


def activations(dictionary: Dictionary, x: Tensor, latents: list[int]) -> Tensor:
    """Return the activations [rows, len(latents)] of some latents on rows [rows, width]."""
    values, indices = dictionary.encode(x)
    return torch.stack([(values * (indices == latent)).sum(1) for latent in latents], dim=1)


def written(dictionary: Dictionary, x: Tensor, change: Tensor, latents: list[int]) -> Tensor:
    """Return what a change [rows, len(latents)] of some latents' activations adds to the reconstruction of rows x."""
    indices = torch.tensor(latents, device=x.device).expand(len(x), -1).contiguous()
    change = change.to(dictionary.W_dec.dtype)
    return dictionary.decode(change, indices, x) - dictionary.decode(torch.zeros_like(change), indices, x)
