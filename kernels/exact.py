"""The scores that encoders return, in PyTorch: one computation, the same bits on every machine.

Products of two float32 numbers are exact in float64. They are added in float64 in 32 interleaved sums (product c goes
to sum c mod 32, in ascending c; rows are continued with zeros), which are folded in halves: sum l takes sum l + 16,
then l + 8, l + 4, l + 2, l + 1. The bias is added in float64 and the result rounded to float32 once; a zero is +0.
Because products are exact it makes no difference whether a processor multiplies and adds in one operation, and nothing
overflows or vanishes on the way. Compiled kernels compute the same (`csrc/exact.h`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SUMS = 32
HELD = 1 << 22  # numbers at once, so that temporaries stay small


def exact_scores(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Score rows on their own latents.

    Parameters
    ----------
    x : Tensor [rows, 1 or n, width]
        float16, bfloat16 or float32, as are the others.
    W : Tensor [1 or rows, n, width]
        Latents of each row.
    b : Tensor [1 or rows, n]
        Their biases.

    Returns
    -------
    float32 Tensor [rows, n]
    """
    width = x.shape[2]
    rows, n = max(len(x), len(W)), max(x.shape[1], W.shape[1])
    sums = torch.zeros(rows, n, SUMS, dtype=torch.float64, device=x.device)
    for c in range(0, width, SUMS):
        left, right = (F.pad(t[..., c : c + SUMS].double(), (0, max(0, c + SUMS - width))) for t in (x, W))
        sums += left * right
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return (sums.squeeze(-1) + b.double()).float() + 0.0


def score_all(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """Score rows x [rows, width] on every latent: float32 [rows, latents]. Slow."""
    step = max(1, HELD // SUMS)
    rows = [
        torch.cat(
            [
                exact_scores(row[None, None], W[None, j : j + step], b[None, j : j + step])
                for j in range(0, len(W), step)
            ],
            1,
        )
        for row in x
    ]
    return torch.cat(rows) if rows else x.new_empty(0, len(W), dtype=torch.float32)


def score_chosen(x: Tensor, W: Tensor, b: Tensor, indices: Tensor) -> Tensor:
    """Score rows x [rows, width] on the latents indices [rows, n]: float32 [rows, n]."""
    step = max(1, HELD // max(1, indices.shape[1] * (W.shape[1] + SUMS)))
    parts = [
        exact_scores(x[r : r + step, None], W[indices[r : r + step]], b[indices[r : r + step]])
        for r in range(0, len(x), step)
    ]
    return torch.cat(parts) if parts else x.new_empty(0, indices.shape[1], dtype=torch.float32)
