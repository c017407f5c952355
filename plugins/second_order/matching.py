"""Orthogonal matching pursuit: each direction as a signed sum of few texts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 1e-6  # share of a direction's or a text's length below which there is nothing left to explain or to add


class Decomposition(NamedTuple):
    """Sparse sums of texts, largest coefficients first.

    Attributes
    ----------
    texts : Tensor
        [direction, term] indices of texts; -1 where fewer were needed.
    coefficients : Tensor
        [direction, term], signed; 0 where there is no text.
    explained : Tensor
        [direction] share of the direction's squared length that the sum explains.
    """

    texts: Tensor
    coefficients: Tensor
    explained: Tensor


def centred_texts(embeddings: Tensor) -> Tensor:
    """Take the pool's mean off text embeddings [text, output], and make each of length 1 (0 where nothing is left)."""
    centred = embeddings - embeddings.mean(0)
    length = centred.norm(dim=1, keepdim=True)
    unit: Tensor = centred / length.clamp_min(SMALLEST) * (length > SMALLEST)
    return unit


def match(directions: Tensor, texts: Tensor, n_terms: int) -> Decomposition:
    """Decompose directions by orthogonal matching pursuit, all at once.

    At each step each direction takes the text of largest absolute product with what is left of it, and is projected off
    all that it has taken (Pati, Rezaiifar & Krishnaprasad 1993).

    Parameters
    ----------
    directions : Tensor
        [direction, output].
    texts : Tensor
        [text, output] of length 1 or 0, from `centred_texts`.
    n_terms : int
        At most; never more than texts or the size of the output.
    """
    n, size = directions.shape
    n_terms = min(n_terms, size, len(texts))
    basis = directions.new_zeros(n, n_terms, size)  # what each step added, orthonormal
    triangle = torch.eye(n_terms, dtype=directions.dtype, device=directions.device).repeat(n, 1, 1)
    inner = directions.new_zeros(n, n_terms)
    taken = torch.full((n, n_terms), -1, dtype=torch.int64, device=directions.device)
    left, length = directions.clone(), directions.norm(dim=1)
    for step in range(n_terms):
        products = left @ texts.T
        for earlier in range(step):  # what was taken is explained, but for rounding
            products.scatter_(1, taken[:, earlier : earlier + 1].clamp_min(0), 0.0)
        best = products.abs().argmax(1)
        atom = texts[best]
        shares = torch.einsum("nks,ns->nk", basis, atom)
        new = atom - torch.einsum("nk,nks->ns", shares, basis)
        new = new - torch.einsum("nk,nks->ns", torch.einsum("nks,ns->nk", basis, new), basis)  # again, for rounding
        height = new.norm(dim=1)
        useful = (left.norm(dim=1) > SMALLEST * length) & (height > SMALLEST)
        unit = torch.where(useful[:, None], new / height.clamp_min(SMALLEST)[:, None], 0.0)
        basis[:, step] = unit
        triangle[:, :step, step] = torch.where(useful[:, None], shares[:, :step], 0.0)
        triangle[:, step, step] = torch.where(useful, height, 1.0)
        inner[:, step] = (left * unit).sum(1)
        left = left - inner[:, step, None] * unit
        taken[:, step] = torch.where(useful, best, -1)
    coefficients = torch.linalg.solve_triangular(triangle, inner[:, :, None], upper=True)[:, :, 0]
    coefficients = torch.where(taken >= 0, coefficients, 0.0)
    order = coefficients.abs().argsort(dim=1, descending=True, stable=True)
    explained = 1 - left.pow(2).sum(1) / length.pow(2).clamp_min(torch.finfo(length.dtype).tiny)
    return Decomposition(taken.gather(1, order), coefficients.gather(1, order), explained.clamp(0, 1))
