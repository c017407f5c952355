"""The three linear operators on a GPU: shapes of blocks and grids, and the order of the kernels."""

import torch
from torch import Tensor

from workbench.kernels.cuda.launching import SUFFIX, Argument, Extent, Launcher, int32, int64, packs

THREADS = 256
DOTS = 4  # of dot.cu: latents that a warp takes at once
DIGITS, DIGIT_BITS, WARPS = 256, 8, 8  # of order.cu
CHUNK, MAX_CHUNKS = 4096, 512  # pairs of a block, and how many blocks at most: they lengthen a scan by one block
SCAN_THREADS = 1024


def sparse_decode(launcher: Launcher, values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """Sum decoder rows: see `workbench.kernels.topk.sparse_decode`. float32, float16 or bfloat16.

    Reads k rows of `W_dec` for each row of output, values and indices, and writes the output: nothing else.
    """
    values, indices, W_dec = values.contiguous(), indices.contiguous(), W_dec.contiguous()
    (rows, k), (latents, width) = indices.shape, W_dec.shape
    if not k:
        return W_dec.new_zeros(rows, width)
    out = W_dec.new_empty(rows, width)
    sizes = int64(rows), int64(latents), int32(width), int32(k)
    _over_rows(launcher, "decode.sparse_decode", W_dec, out, values, indices, W_dec, out, *sizes)
    return out


def gathered_dot(launcher: Launcher, x: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """Dot rows of x with gathered rows of W: see `workbench.kernels.topk.gathered_dot`."""
    x, indices, W = x.contiguous(), indices.contiguous(), W.contiguous()
    (rows, k), (latents, width) = indices.shape, W.shape
    out = x.new_empty(rows, k)
    if out.numel():
        per_thread = packs(width, x, W)
        warps = rows * -(-k // DOTS)
        sizes = int64(rows), int64(latents), int32(width), int32(k)
        kernel = _variant("dot.gathered_dot", per_thread, W)
        launcher.launch(kernel, (-(-warps * 32 // THREADS),), (THREADS,), x, indices, W, out, *sizes)
    return out


def scatter_outer(launcher: Launcher, values: Tensor, indices: Tensor, x: Tensor, n_latents: int) -> Tensor:
    """Sum rows of x into latents, in row order: see `workbench.kernels.topk.scatter_outer`."""
    values, indices, x = values.contiguous(), indices.contiguous(), x.contiguous()
    out = x.new_empty(n_latents, x.shape[1])
    if not values.numel():
        return out.zero_()
    pairs, starts = by_latent(launcher, indices, n_latents)
    sizes = int64(n_latents), int32(x.shape[1]), int32(values.shape[1])
    _over_rows(launcher, "scatter.scatter_outer", x, out, values, pairs, starts, x, out, *sizes)
    return out


def by_latent(launcher: Launcher, indices: Tensor, n_latents: int) -> tuple[Tensor, Tensor]:
    """Bring the pairs (row, place) into the order of their latents, row order within each.

    Parameters
    ----------
    launcher : Launcher
        Of the device that holds `indices`.
    indices : int64 Tensor [rows, k]
        Contiguous and not empty; fewer than 2**31 entries.
    n_latents : int
        One more than the largest index may be.

    Returns
    -------
    pairs : int32 Tensor [rows * k]
        Pair numbers, row * k + place.
    starts : int32 Tensor [n_latents + 1]
        The pairs of latent j are `pairs[starts[j] : starts[j + 1]]`.
    """
    n = indices.numel()
    int32(n)
    chunk = max(CHUNK, -(-n // (MAX_CHUNKS * DIGITS)) * DIGITS)
    n_chunks = -(-n // chunk)
    counts, pairs, other = (
        torch.empty(size, dtype=torch.int32, device=indices.device) for size in (DIGITS * n_chunks, n, n)
    )
    source = indices.new_empty(0)  # a null pointer: before the first pass, pairs as they come
    grid, block, table_bytes = (n_chunks,), (THREADS,), 4 * DIGITS
    for shift in range(0, max(1, (n_latents - 1).bit_length()), DIGIT_BITS):
        step = int32(chunk), int32(shift)
        count = indices, source, counts, int64(n), int64(n_latents), *step
        place = indices, source, counts, pairs, int64(n), *step
        launcher.launch("order.order_count", grid, block, *count, shared_bytes=table_bytes)
        launcher.launch("order.order_scan", (1,), (SCAN_THREADS,), counts, int32(DIGITS * n_chunks), shared_bytes=128)
        launcher.launch("order.order_place", grid, block, *place, shared_bytes=WARPS * table_bytes)
        source, pairs, other = pairs, other, pairs
    starts = torch.empty(n_latents + 1, dtype=torch.int32, device=indices.device)
    grid = (-(-(n_latents + 1) // THREADS),)
    launcher.launch("order.order_starts", grid, (THREADS,), indices, source, starts, int64(n), int64(n_latents))
    return source, starts


def _over_rows(launcher: Launcher, kernel: str, table: Tensor, out: Tensor, *arguments: Argument) -> None:
    """Launch a kernel whose threads own numbers side by side in `out`, made of those in the rows of `table`."""
    if out.numel():
        rows, width = out.shape
        per_thread = packs(width, table, out)
        grid, block = tiling(rows, width // per_thread)
        launcher.launch(_variant(kernel, per_thread, out), grid, block, *arguments)


def _variant(kernel: str, per_thread: int, tensor: Tensor) -> str:
    return f"{kernel}_{'packed_' if per_thread > 1 else ''}{SUFFIX[tensor.dtype]}"


def tiling(rows: int, across: int) -> tuple[Extent, Extent]:
    """Grid and block for `rows` rows of `across` threads: (rows, pieces of a row), (threads, rows in a block)."""
    pieces = -(-across // THREADS)
    warps = -(-across // (pieces * 32))
    block = (32 * warps, THREADS // (32 * warps))
    return (-(-rows // block[1]), -(-across // block[0])), block
