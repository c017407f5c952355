"""Top-k encoding in plain PyTorch: the kernel of every device that has no other, and the definition for the others.

For float64 the scores are those of torch's matrix product. For lower precisions they are those of `exact.py`, to the
bit: torch's product only tells which latents are worth computing, with a bound on its rounding error.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from workbench.kernels.exact import score_all, score_chosen
from workbench.kernels.selection import ranked

TILE_ROWS = 1024
TILE_LATENTS = 4096
SPARE = 8  # latents beyond k that are computed exactly, so that a near tie at the end settles itself
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}  # largest share by which rounding changes a number


def topk_encode(x: Tensor, W: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Encode; see `workbench.kernels.topk.topk_encode`."""
    if x.dtype == torch.float64:
        values, indices = approximate(x, W, b, k, torch.float64)
        lost = (values == -torch.inf).nonzero(as_tuple=True)
        if lost[0].numel():  # minus infinity in truth, or NaN: say which
            values[lost] = (x[lost[0]] * W[indices[lost]]).sum(1) + b[indices[lost]]
        return values, indices
    products = torch.float32 if _products_are_float32() else torch.float64
    latents = W.shape[0]
    guesses, indices = approximate(x, W, b, min(k + SPARE, latents), products)
    values, indices = best(score_chosen(x, W, b, indices), indices, k)
    if indices.shape[1] < latents:
        limit = (guesses[:, -1].double() + rounding_error(x, W, b, products)).float()  # of those that were left out
        unsure = ~(limit < values[:, -1])
        broken = x.isnan().any(1)
        redo = (unsure & ~broken).nonzero().squeeze(1)
        for r in redo:
            everything = torch.arange(latents, device=x.device)[None]
            values[r], indices[r] = (t[0] for t in best(score_all(x[r, None], W, b), everything, k))
        values[broken] = torch.nan
        indices[broken] = torch.arange(k, device=x.device)
    return values.to(x.dtype), indices


def best(scores: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Take the k best of each row: by descending score (NaN last), then by ascending index."""
    indices, order = indices.sort(dim=1)
    scores = scores.gather(1, order)
    places = ranked(_comparable(scores), k)
    return scores.gather(1, places), indices.gather(1, places)


def approximate(x: Tensor, W: Tensor, b: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Form scores tile by tile as torch multiplies matrices, and merge them into a running top k; NaN as -infinity."""
    values = torch.empty(x.shape[0], 0, dtype=dtype, device=x.device)
    indices = torch.empty(x.shape[0], 0, dtype=torch.int64, device=x.device)
    for tile in _slices(W.shape[0], TILE_LATENTS):
        W_tile, b_tile = W[tile].to(dtype), b[tile].to(dtype)
        merged = [
            _merge(values[rows], indices[rows], torch.addmm(b_tile, x[rows].to(dtype), W_tile.T), tile.start, k)
            for rows in _slices(x.shape[0], TILE_ROWS)
        ]
        if merged:
            values, indices = (torch.cat(parts) for parts in zip(*merged, strict=True))
        else:
            values, indices = (t.new_empty(0, min(k, tile.stop)) for t in (values, indices))
    return values, indices


def rounding_error(x: Tensor, W: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Bound the rounding error of torch's scores in any order of summation, for each row: float64 [rows].

    A sum of n products, rounded at each step, is off by at most n u / (1 - n u) times the sum of their sizes, which is
    at most |x| |W[j]| (Cauchy and Schwarz). Twice that is taken; it also covers the exact score's own rounding.
    """
    longest = torch.linalg.vector_norm(W, dim=1, dtype=torch.float64)
    longest = longest[longest.isfinite()].max() if longest.isfinite().any() else longest.new_zeros(())
    largest = b.double()[b.isfinite()].abs().max() if b.isfinite().any() else longest.new_zeros(())
    sizes = torch.linalg.vector_norm(x, dim=1, dtype=torch.float64) * longest + largest
    error: Tensor = 2 * (x.shape[1] + 8) * UNIT[dtype] * sizes + torch.finfo(torch.float32).tiny
    error[~(sizes < 1e37)] = torch.inf  # larger sums may overflow on the way
    return error


def _products_are_float32() -> bool:
    """Whether torch multiplies float32 matrices as such; it can be told to round them to TF32 or bfloat16 first."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by the newer interface, which does not tell as a whole
        return False


def _merge(values: Tensor, indices: Tensor, scores: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """Merge a tile's scores [rows, tile], latents `start` and on, into a running top k of lower latents."""
    scores = _comparable(scores)
    here = ranked(scores, min(k, scores.shape[1]))
    if not values.shape[1]:
        return scores.gather(1, here), here + start
    values = torch.cat([values, scores.gather(1, here)], dim=1)
    indices = torch.cat([indices, here + start], dim=1)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]  # lower latents stand first, so they win ties
    return values.gather(1, order), indices.gather(1, order)


def _comparable(scores: Tensor) -> Tensor:
    return scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def _slices(n: int, step: int) -> Iterator[slice]:
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
