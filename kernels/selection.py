"""The k largest entries of each row, largest first, ties by lowest position: the order every kernel must give."""

import torch
from torch import Tensor

GROUPS_OF = 16  # a group's maximum decides whether its entries are looked at; 16 halves torch.topk's time at k = 32


def ranked(scores: Tensor, k: int) -> Tensor:
    """Positions of the k largest entries of each row.

    Parameters
    ----------
    scores : Tensor [rows, n]
        Floating point, without NaN.
    k : int
        1 <= k <= n.

    Returns
    -------
    int64 Tensor [rows, k]
        By descending score; equal scores by ascending position.
    """
    n = scores.shape[1]
    if k == n:
        return scores.argsort(dim=1, descending=True, stable=True)
    if n >= 2 * GROUPS_OF * (k + 1):
        positions, tied = _through_groups(scores, k)
    else:
        positions, tied = _largest(scores, k)
    positions = positions.sort(dim=1).values
    positions = positions.gather(1, scores.gather(1, positions).argsort(dim=1, descending=True, stable=True))
    repair = tied.nonzero().squeeze(1)
    if repair.numel():
        positions[repair] = scores[repair].argsort(dim=1, descending=True, stable=True)[:, :k]
    return positions


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Positions [rows, k] of k largest entries in any order, and the rows where more than k have a claim."""
    top = scores.topk(k + 1, dim=1)
    return top.indices[:, :k], top.values[:, k - 1] == top.values[:, k]


def _through_groups(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `_largest`, sorting only the k groups with the largest maxima (and what is left over at the end).

    An entry among the k largest is at least the k-th, so its group's maximum is too, and without ties at most k groups
    have such a maximum. Where group k + 1 has it as well, the row counts as tied.
    """
    rows, n = scores.shape
    n_groups = n // GROUPS_OF
    grouped = scores[:, : n_groups * GROUPS_OF].view(rows, GROUPS_OF, n_groups)
    maxima = grouped.amax(1).topk(k + 1, dim=1)
    chosen = maxima.indices[:, None, :k].expand(-1, GROUPS_OF, -1)
    candidates = torch.cat([grouped.gather(2, chosen).flatten(1), scores[:, n_groups * GROUPS_OF :]], dim=1)
    steps = torch.arange(GROUPS_OF, device=scores.device)[:, None] * n_groups
    rest = torch.arange(n_groups * GROUPS_OF, n, device=scores.device).expand(rows, -1)
    columns = torch.cat([(chosen + steps).flatten(1), rest], dim=1)
    top = candidates.topk(k + 1, dim=1)
    kth = top.values[:, k - 1]
    tied = (top.values[:, k] == kth) | (maxima.values[:, k] >= kth)
    return columns.gather(1, top.indices[:, :k]), tied
