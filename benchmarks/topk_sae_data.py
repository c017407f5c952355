"""Rows and weights for the benchmark of the TopK autoencoder: easy ones, and the kinds that make screening hard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.kernels.training import FactoredAdam, LatentMatrix

FEATURES, ACTIVE = 4096, 24
TRAINING_STEPS = 100


@dataclass(frozen=True)
class Size:
    """Sizes of a step."""

    rows: int
    width: int
    latents: int
    k: int

    def __str__(self) -> str:
        return f"rows {self.rows}, width {self.width}, latents {self.latents}, k {self.k}"


@dataclass(frozen=True)
class Task:
    """A batch, and the weights that every way starts from: one latent's numbers side by side, decoder rows of length 1.

    Attributes
    ----------
    x : Tensor [rows, width]
        The batch.
    W_enc, W_dec : Tensor [latents, width]
        Weights.
    b_enc : Tensor [latents]
        Encoder bias.
    b_dec : Tensor [width]
        Decoder bias, also taken from the rows before they are encoded.
    """

    x: Tensor
    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor


def make(kind: str, size: Size) -> Task:
    """Draw a task of one of `KINDS`, always the same one."""
    numbers = torch.Generator().manual_seed(1)
    x = torch.randn(size.rows, size.width, generator=numbers)
    W = torch.randn(size.latents, size.width, generator=numbers)
    W /= W.norm(dim=1, keepdim=True)
    b_enc, b_dec = torch.zeros(size.latents), torch.zeros(size.width)
    if kind == "outlier channels":  # as residual streams have
        x[:, [5, size.width // 2]] *= 30
    elif kind == "outlier tokens":  # large entries at other places in each row
        places = torch.randint(size.width, (size.rows, 2), generator=numbers)
        x.scatter_(1, places, 30 * torch.randn(size.rows, 2, generator=numbers))
    elif kind == "heavy tails":
        x *= torch.exp(0.8 * torch.randn(size.width, generator=numbers))
    elif kind == "trained":
        return trained(size, numbers, W)
    return Task(x, W, b_enc, W.clone(), b_dec)


class SparseSums:
    """Rows that are sparse sums of unit features, a common mean and a little noise, as a dictionary is trained for.

    Parameters
    ----------
    width : int
        Of a row.
    """

    def __init__(self, width: int) -> None:
        numbers = torch.Generator().manual_seed(2)
        self.features = torch.nn.functional.normalize(torch.randn(FEATURES, width, generator=numbers), dim=1)
        self.mean = 0.5 * torch.randn(width, generator=numbers)

    def draw(self, rows: int, numbers: torch.Generator) -> Tensor:
        """Return rows [rows, width]; some `ACTIVE` features are active on each."""
        active = torch.rand(rows, FEATURES, generator=numbers) < ACTIVE / FEATURES
        latents = active.nonzero()[:, 1]
        strengths = 0.5 + torch.randn(len(latents), generator=numbers).abs()
        firsts = active.sum(1).cumsum(0) - active.sum(1)
        sums = torch.nn.functional.embedding_bag(
            latents, self.features, firsts, mode="sum", per_sample_weights=strengths
        )
        noise = 0.05 * torch.randn(rows, self.features.shape[1], generator=numbers)
        return sums + noise + self.mean


def trained(size: Size, numbers: torch.Generator, W: Tensor) -> Task:
    """Sparse sums of features, and weights trained on them."""
    sums = SparseSums(size.width)

    def batch() -> Tensor:
        return sums.draw(size.rows, numbers)

    b_dec = batch().mean(0).requires_grad_()
    encoder, decoder = LatentMatrix(W, torch.zeros(len(W))), LatentMatrix(W.clone(), unit_rows=True)
    adam = FactoredAdam({"encoder": encoder, "decoder": decoder}, {"b_dec": b_dec}, lr=1e-3)
    for _ in range(TRAINING_STEPS):
        x = batch()
        values, indices = encoder.encode(x, size.k, centre=b_dec)
        error, _left = decoder.decode_error(values.relu(), indices, b_dec, x)
        error.mean().backward()
        adam.step()
    assert encoder.bias is not None
    return Task(batch(), encoder.rows, encoder.bias, decoder.rows, b_dec.detach())


KINDS = ("gaussian", "outlier channels", "outlier tokens", "heavy tails", "trained")
