"""The three linear operators on a GPU: shapes of blocks and grids, and the order of the kernels."""

from torch import Tensor

from workbench.kernels.cuda.launching import SUFFIX, Extent, Launcher, int32, int64, packs

THREADS = 256


def sparse_decode(launcher: Launcher, values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """Sum decoder rows: see `workbench.kernels.topk.sparse_decode`. float32, float16 or bfloat16.

    Reads k rows of `W_dec` for each row of output, values and indices, and writes the output: nothing else.
    """
    values, indices, W_dec = values.contiguous(), indices.contiguous(), W_dec.contiguous()
    (rows, k), (latents, width) = indices.shape, W_dec.shape
    out = W_dec.new_zeros(rows, width) if k == 0 else W_dec.new_empty(rows, width)
    if out.numel() and k:
        per_thread = packs(width, W_dec, out)
        grid, block = tiling(rows, width // per_thread)
        kernel = f"decode.sparse_decode_{'packed_' if per_thread > 1 else ''}{SUFFIX[W_dec.dtype]}"
        sizes = int64(rows), int64(latents), int32(width), int32(k)
        launcher.launch(kernel, grid, block, values, indices, W_dec, out, *sizes)
    return out


def tiling(rows: int, across: int) -> tuple[Extent, Extent]:
    """Grid and block for `rows` rows of `across` threads: (rows, pieces of a row), (threads, rows in a block)."""
    pieces = -(-across // THREADS)
    warps = -(-across // (pieces * 32))
    block = (32 * warps, THREADS // (32 * warps))
    return (-(-rows // block[1]), -(-across // block[0])), block
