"""topk_encode on a GPU: which kernels in which order, and the memory between them.

1. `encode_prepare` writes rows of x and of W as 16-bit numbers, and bounds of what these leave out.
2. `encode_screen` forms approximate scores in registers and lists, for each row, the latents that can be among its k
   best: see encode_screen.cu, and encode.cuh for the bound.
3. `encode_select` scores those exactly and sorts them.
4. `encode_exact` scores every latent of the rows that the screen gave up; there the same kernel is the whole encoder.

Nothing here waits for the device: step 4 finds its rows there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.kernels.cuda.launching import SUFFIX, Launcher, float32, int32, int64, packs

# of encode_screen.cu
BK, STAGES, CAPACITY = 64, 3, 1024
SCREENED_K = 256  # a list must hold k and more beside a tile's worth of latents
# of encode_select.cu
THREADS, TEAM, MOST_KEYS = 256, 8, 2048
SORTED_K = MOST_KEYS // 2

FEWEST_LATENTS = 1024  # below, all scores are exact from the start
ROWS_AT_ONCE = 8192  # of one pass of the screen: its lists take 8 KB a row and split
SCORES_AT_ONCE = 2**24  # where k is too large for our sort: 64 MB
MOST_SPLITS = 16


@dataclass(frozen=True)
class Shape:
    """The tile of a block of the screen."""

    name: str
    rows: int
    latents: int
    threads: int

    @property
    def shared_bytes(self) -> int:
        """Operands in all stages, and a few numbers for each row and latent."""
        maxima = 16 * -(-3 * 4 * (self.threads // 32) // 16)
        return STAGES * (self.rows + self.latents) * BK * 2 + self.latents * 20 + self.rows * 32 + maxima


LARGE, SMALL = Shape("large", 128, 256, 256), Shape("small", 64, 128, 128)


def topk_encode(launcher: Launcher, x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k best latents of each row: see `workbench.kernels.topk.topk_encode`. float32, float16 or bfloat16."""
    x, W_enc, bias = x.contiguous(), W_enc.contiguous(), b_enc.float().contiguous()
    rows, latents = x.shape[0], W_enc.shape[0]
    values, indices = x.new_empty(rows, k), x.new_empty(rows, k, dtype=torch.int64)
    if not rows:
        return values, indices
    if k > SORTED_K:
        _sort_scores(launcher, x, W_enc, bias, values, indices)
    elif k > SCREENED_K or latents < FEWEST_LATENTS or not x.shape[1]:
        _score_exactly(launcher, x, W_enc, bias, None, values, indices)
    else:
        _screen(launcher, x, W_enc, bias, values, indices)
    return values, indices


def _screen(launcher: Launcher, x: Tensor, W: Tensor, bias: Tensor, values: Tensor, indices: Tensor) -> None:
    latents, facts_W = _operand(launcher, W)
    for first in range(0, x.shape[0], ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        _screen_rows(launcher, x[part], W, bias, latents, facts_W, values[part], indices[part])


def _screen_rows(
    launcher: Launcher,
    x: Tensor,
    W: Tensor,
    bias: Tensor,
    latents: Tensor,
    facts_W: Tensor,
    values: Tensor,
    indices: Tensor,
) -> None:
    """Screen, select and, where the screen gave up, score exactly; `latents` are the operands made of W."""
    (n_rows, width), (n_latents, k), padded = x.shape, (W.shape[0], values.shape[1]), latents.shape[1]
    rows, facts_x = _operand(launcher, x)
    shape = LARGE if n_rows > SMALL.rows and launcher.shared_bytes >= LARGE.shared_bytes else SMALL
    row_tiles = -(-n_rows // shape.rows)
    splits = split_count(row_tiles, -(-n_latents // shape.latents), launcher.n_processors)
    bars, stopped = (torch.zeros(n_rows, dtype=torch.int32, device=x.device) for _ in range(2))
    counts = torch.empty(n_rows * splits, dtype=torch.int32, device=x.device)
    lists = torch.empty(n_rows * splits * CAPACITY, dtype=torch.int64, device=x.device)
    sigma = float32(-(-padded // 16) * 2.0**-19 + 2.0**-21)  # see encode.cuh
    suffix = "bf16" if x.dtype == torch.bfloat16 else "f16"
    facts = facts_x, facts_W, bias, bars, lists, counts, stopped
    problem = int64(n_rows), int32(n_latents), int32(padded), int32(k), int32(splits), sigma
    launcher.launch(
        f"encode_screen.encode_screen_{shape.name}_{suffix}",
        (row_tiles * splits,),
        (shape.threads,),
        *(rows, latents, *facts, *problem),
        shared_bytes=shape.shared_bytes,
    )
    results = bars, lists, counts, stopped, values, indices
    sizes = int32(width), int32(padded), int32(k), int32(splits), sigma
    launcher.launch(
        _variant("select", x, W),
        (n_rows,),
        (THREADS,),
        *(x, W, bias, facts_x, facts_W, *results, *sizes),
        shared_bytes=16 * MOST_KEYS + 16,
    )
    _score_exactly(launcher, x, W, bias, stopped, values, indices)


def split_count(row_tiles: int, latent_tiles: int, n_processors: int) -> int:
    """Into how many ranges the latents are split, so that blocks fill the processors and few wait for the last.

    A block takes as long as it has tiles, and as many blocks run at once as there are processors. Each split has a
    list of its own for every row, so of equally quick numbers the smallest is taken.
    """

    def time(splits: int) -> int:
        return -(-row_tiles * splits // n_processors) * -(-latent_tiles // splits)

    return min(range(1, min(MOST_SPLITS, latent_tiles) + 1), key=time)


def _operand(launcher: Launcher, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """16-bit numbers [rows, width to a multiple of 8] and facts [rows, 4] of a matrix."""
    rows, width = matrix.shape
    padded = -(-width // 8) * 8
    facts = torch.empty(rows, 4, dtype=torch.float32, device=matrix.device)
    as_it_is = matrix.dtype != torch.float32 and padded == width and matrix.data_ptr() % 16 == 0
    copy = matrix.new_empty(0 if as_it_is else rows, padded, dtype=torch.int16)  # empty: a null pointer
    per_thread = packs(width, matrix)
    kernel = f"encode_prepare.encode_prepare_{'packed_' if per_thread > 1 else ''}{SUFFIX[matrix.dtype]}"
    sizes = int64(rows), int32(width), int32(padded)
    launcher.launch(kernel, (-(-rows * 32 // THREADS),), (THREADS,), matrix, copy, facts, *sizes)
    return matrix if as_it_is else copy, facts


def _score_exactly(
    launcher: Launcher, x: Tensor, W: Tensor, bias: Tensor, stopped: Tensor | None, values: Tensor, indices: Tensor
) -> None:
    """Score every latent of the rows that `stopped` names, or of all rows."""
    named = x.new_empty(0, dtype=torch.int32) if stopped is None else stopped  # a null pointer: all
    sizes = int32(W.shape[0]), int32(x.shape[1]), int32(values.shape[1])
    arguments = x, W, bias, named, values, indices, *sizes
    keys_bytes = 8 * MOST_KEYS + 16
    launcher.launch(_variant("exact", x, W), (x.shape[0],), (THREADS,), *arguments, shared_bytes=keys_bytes)


def _sort_scores(launcher: Launcher, x: Tensor, W: Tensor, bias: Tensor, values: Tensor, indices: Tensor) -> None:
    """Score a few rows at a time and leave the sorting to torch."""
    (rows, width), latents, k = x.shape, W.shape[0], values.shape[1]
    at_once = min(max(1, SCORES_AT_ONCE // latents), 65_535)
    for first in range(0, rows, at_once):
        part = x[first : first + at_once]
        scores = torch.empty(part.shape[0], latents, dtype=torch.float32, device=x.device)
        grid = (-(-latents * TEAM // THREADS), part.shape[0])
        sizes = int32(latents), int32(width)
        launcher.launch(_variant("scores", part, W), grid, (THREADS,), part, W, bias, scores, *sizes)
        ranks = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        best = ranks.argsort(dim=1, descending=True, stable=True)[:, :k]
        indices[first : first + at_once] = best
        values[first : first + at_once] = scores.gather(1, best)


def _variant(name: str, x: Tensor, W: Tensor) -> str:
    packed = "packed_" if packs(x.shape[1], x, W) > 1 else ""
    return f"encode_select.encode_{name}_{packed}{SUFFIX[x.dtype]}"
