"""The best latents of a whole batch, found without a matrix [rows, latents]."""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.kernels.topk import topk_encode
from workbench.ranks import ALONE, Ranks

CANDIDATES = 4  # a row's candidates at first, as a multiple of the mean number that is wanted
MORE = 4  # by which they are multiplied for rows that may have lost one


def batch_topk(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, n: int, *, n_rows: int | None = None, ranks: Ranks = ALONE
) -> tuple[Tensor, Tensor]:
    """Return the n largest positive scores of a whole batch, row by row.

    Parameters
    ----------
    x : Tensor [rows, width]
        Rows; none is allowed.
    W_enc, b_enc : Tensor [latents, width], [latents]
        Encoder.
    n : int
        How many in all, 1 <= n <= rows × latents.
    n_rows : int, optional
        Rows of the whole batch, where several processes have a part of it each.
    ranks : Ranks
        These processes; each is given the chosen scores of its own rows.

    Returns
    -------
    values : Tensor [rows, most]
        Scores, descending in each row, in the graph; zero beyond those chosen. `most` is the largest number chosen in a
        row, at least 1.
    indices : int64 Tensor [rows, most]
        Their latents.

    Notes
    -----
    Each row's best few scores are its candidates; the n-th largest candidate is the threshold. A row whose last
    candidate still reaches it may have lost others: it is encoded again with more candidates, until there is no such
    row, so that the choice is that of the full matrix. Ties at the threshold go to the first rows, and in a row to the
    lowest latents.
    """
    rows, latents = len(x) if n_rows is None else n_rows, W_enc.shape[0]
    if not rows:
        return topk_encode(x, W_enc, b_enc, 1)
    width = min(latents, CANDIDATES * max(1, -(-n // rows)))
    values, indices = topk_encode(x, W_enc, b_enc, width)
    while True:
        positive = values.detach().relu()
        everyone = ranks.gather(positive)
        whole = torch.cat(everyone) if len(everyone) > 1 else positive
        threshold = _nth_largest(whole, n)
        short = positive[:, -1] >= threshold.clamp_min(_TINY)
        if width == latents or not torch.cat(ranks.gather(short)).any():
            break
        width = min(latents, MORE * width)
        again = short.nonzero().squeeze(1)
        more_values, more_indices = topk_encode(x[again], W_enc, b_enc, width)
        values = _widened(values, width, 0.0).index_copy(0, again, more_values)
        indices = _widened(indices, width, 0).index_copy(0, again, more_indices)
    before = sum(len(part) for part in everyone[: ranks.rank])
    chosen = _exactly(whole, threshold, n)[before : before + len(x)]
    most = max(1, int(chosen.sum(1).max()))  # values descend, so those chosen come first
    return values[:, :most] * chosen[:, :most], indices[:, :most]


_TINY = torch.finfo(torch.float32).tiny


def _nth_largest(values: Tensor, n: int) -> Tensor:
    """Return the n-th largest entry; 0 where there are not so many."""
    flat = values.flatten()
    if n > len(flat):
        return flat.new_zeros(())
    return flat.kthvalue(len(flat) - n + 1).values


def _exactly(positive: Tensor, threshold: Tensor, n: int) -> Tensor:
    """Choose n entries [rows, width] of those at or above a threshold, as bool; fewer where fewer are positive."""
    chosen = (positive >= threshold) & (positive > 0)
    surplus = int(chosen.sum()) - n
    if surplus > 0:
        tied = (chosen & (positive == threshold)).flatten().nonzero().squeeze(1)
        chosen.view(-1)[tied[len(tied) - surplus :]] = False
    return chosen


def _widened(tensor: Tensor, width: int, fill: float) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=fill)
