"""TopK encoding and sparse decoding, with gradients that touch the k active latents of each row and no others.

Five operators, registered with `torch.library` under `workbench::`; `operators.py` holds their definition in plain
PyTorch, which runs on every device. They are closed under differentiation: the backward of each is made of the
others, so that second derivatives exist too.

==================  ==========================================================================
`topk_encode`       x, W_enc, b_enc, k -> the k best latents of each row and their scores
`sparse_decode`     values, indices, W_dec, b_dec -> rows, sums of k decoder rows
`decode_error`      values, indices, W_dec, b_dec, target -> what decoding leaves of the target
`gathered_dot`      x, indices, W -> x[r] · W[indices[r, i]]
`scatter_outer`     values, indices, x, n -> W-shaped sums of values[r, i] x[r]
==================  ==========================================================================

No [rows, latents] matrix is ever held: scores are formed in tiles, which are looked at and forgotten. On the processor
compiled kernels answer where there is a C++ compiler (`choice.py`), else plain PyTorch; both give the same bits.

Numbers. Scores are float32, rounded once from a sum in float64 whose order is fixed (`exact.py`): every kernel,
processor and number of threads ranks and returns the same ones. Scores of float16 and bfloat16 inputs are ranked in
float32 too, and rounded to the inputs' dtype once selected (float16 overflows to infinity beyond 65504). float64 inputs
have float64 scores, in torch's order of summation. Latents are listed by descending score, equal scores by ascending
index. A NaN score ranks as minus infinity, below every finite one; if it is selected all the same, because fewer
than k others are left, its value is NaN: a broken row is seen, not hidden. +inf ranks first.
"""

import torch
from torch import Tensor

from workbench.kernels import operators
from workbench.kernels.cpu import registration as on_cpu  # noqa: F401  # registers kernels
from workbench.kernels.cuda import registration as on_cuda  # noqa: F401
from workbench.kernels.errors import KernelError

SUPPORTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Score every latent on every row, x·W_enc + b_enc, and return the k best of each row.

    Parameters
    ----------
    x : Tensor [rows, width]
        Any number of rows, none included.
    W_enc : Tensor [latents, width]
        Same dtype and device as `x`.
    b_enc : Tensor [latents]
        Same dtype and device as `x`.
    k : int
        1 <= k <= latents.

    Returns
    -------
    values : Tensor [rows, k]
        Scores as selected, before any ReLU, in the dtype of `x`, descending.
    indices : int64 Tensor [rows, k]
        Their latents; equal scores by ascending index.

    Raises
    ------
    KernelError
        If shapes, dtypes or devices do not fit, or k is out of range.

    Notes
    -----
    Differentiable in `x`, `W_enc` and `b_enc` through the selected scores; the selection itself has no gradient.
    See the module's docstring for ties, NaN and low precision.
    """
    _check("topk_encode", [("x", x, 2), ("W_enc", W_enc, 2), ("b_enc", b_enc, 1)])
    _same("topk_encode", ("x", x, 1), ("W_enc", W_enc, 1), "width")
    _same("topk_encode", ("W_enc", W_enc, 0), ("b_enc", b_enc, 0), "latents")
    if not 1 <= k <= W_enc.shape[0]:
        raise KernelError(f"topk_encode: k={k} must be between 1 and {W_enc.shape[0]}, the number of latents")
    values, indices = operators.topk_encode(x, W_enc, b_enc, k)
    return values, indices


def sparse_decode(values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor | None = None) -> Tensor:
    """Sum the decoder rows of the active latents: b_dec + sum over i of values[r, i] W_dec[indices[r, i]].

    Parameters
    ----------
    values : Tensor [rows, k]
        Activations; a latent named twice in a row counts twice.
    indices : int64 Tensor [rows, k]
        0 <= index < latents.
    W_dec : Tensor [latents, width]
        Same dtype and device as `values`.
    b_dec : Tensor [width], optional
        Added to every row.

    Returns
    -------
    Tensor [rows, width]

    Raises
    ------
    KernelError
        If shapes, dtypes or devices do not fit.
    """
    bias = [] if b_dec is None else [("b_dec", b_dec, 1)]
    _check("sparse_decode", [("values", values, 2), ("W_dec", W_dec, 2), *bias])
    _check_indices("sparse_decode", indices, ("values", values, 2))
    if b_dec is not None:
        _same("sparse_decode", ("W_dec", W_dec, 1), ("b_dec", b_dec, 0), "width")
    out: Tensor = operators.sparse_decode(values, indices, W_dec)
    return out if b_dec is None else out + b_dec


def decode_error(
    values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Compare what the active latents decode to with a target.

    Parameters
    ----------
    values, indices, W_dec : Tensor
        As for `sparse_decode`.
    b_dec : Tensor [width]
        Added to every row.
    target : Tensor [rows, width]
        Same dtype and device as `values`.

    Returns
    -------
    error : Tensor [rows]
        Squared length of what is left of each row.
    left : Tensor [rows, width]
        ``target - sparse_decode(values, indices, W_dec, b_dec)``.

    Raises
    ------
    KernelError
        If shapes, dtypes or devices do not fit.

    Notes
    -----
    `error` is differentiable in all tensors but `indices`; `left` is not. The gradient of `values` is computed on the
    way, while a row's decoder rows are still in the cache, so that a training step is faster than with `sparse_decode`.
    """
    _check("decode_error", [("values", values, 2), ("W_dec", W_dec, 2), ("b_dec", b_dec, 1), ("target", target, 2)])
    _check_indices("decode_error", indices, ("values", values, 2))
    _same("decode_error", ("W_dec", W_dec, 1), ("b_dec", b_dec, 0), "width")
    _same("decode_error", ("W_dec", W_dec, 1), ("target", target, 1), "width")
    _same("decode_error", ("values", values, 0), ("target", target, 0), "rows")
    error, left, _ = operators.decode_error(values, indices, W_dec, b_dec, target)
    return error, left


def gathered_dot(x: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """Dot each row of x with its own k rows of W: x[r] · W[indices[r, i]].

    Parameters
    ----------
    x : Tensor [rows, width]
        Any number of rows, none included.
    indices : int64 Tensor [rows, k]
        0 <= index < latents.
    W : Tensor [latents, width]
        Same dtype and device as `x`.

    Returns
    -------
    Tensor [rows, k]

    Raises
    ------
    KernelError
        If shapes, dtypes or devices do not fit.
    """
    _check("gathered_dot", [("x", x, 2), ("W", W, 2)])
    _check_indices("gathered_dot", indices, ("x", x, 1))
    _same("gathered_dot", ("x", x, 1), ("W", W, 1), "width")
    out: Tensor = operators.gathered_dot(x, indices, W)
    return out


def scatter_outer(values: Tensor, indices: Tensor, x: Tensor, n_latents: int) -> Tensor:
    """Sum values[r, i] x[r] into row indices[r, i] of the result: the codes, transposed and kept sparse, times x.

    Parameters
    ----------
    values : Tensor [rows, k]
        Weight of each row on its latents; a latent named twice in a row counts twice.
    indices : int64 Tensor [rows, k]
        0 <= index < n_latents.
    x : Tensor [rows, width]
        Same dtype and device as `values`.
    n_latents : int
        Rows of the result.

    Returns
    -------
    Tensor [n_latents, width]
        Each sum runs in row order, whatever the number of threads: the same input gives the same bits on CPU.

    Raises
    ------
    KernelError
        If shapes, dtypes or devices do not fit.
    """
    _check("scatter_outer", [("values", values, 2), ("x", x, 2)])
    _check_indices("scatter_outer", indices, ("values", values, 2))
    _same("scatter_outer", ("values", values, 0), ("x", x, 0), "rows")
    out: Tensor = operators.scatter_outer(values, indices, x, n_latents)
    return out


# --- checks at the door -------------------------------------------------------------------------------------------
def _check(op: str, tensors: list[tuple[str, Tensor, int]]) -> None:
    """Refuse a wrong number of axes, and dtypes or devices that differ from the first tensor's."""
    first_name, first, _ = tensors[0]
    if first.dtype not in SUPPORTED:
        raise KernelError(f"{op}: {first_name} is {first.dtype}; takes float16, bfloat16, float32 or float64")
    for name, tensor, axes in tensors:
        if tensor.ndim != axes:
            raise KernelError(f"{op}: {name} has shape {tuple(tensor.shape)}, must have {axes} axes")
        if tensor.dtype != first.dtype:
            raise KernelError(f"{op}: {name} is {tensor.dtype}, but {first_name} is {first.dtype}; they must agree")
        if tensor.device != first.device:
            raise KernelError(f"{op}: {name} is on {tensor.device}, but {first_name} on {first.device}")


def _check_indices(op: str, indices: Tensor, beside: tuple[str, Tensor, int]) -> None:
    """Refuse indices that are not int64, or that differ from another tensor in their first `n` axes."""
    name, tensor, n = beside
    if indices.dtype != torch.int64 or indices.ndim != 2:
        raise KernelError(f"{op}: indices is {indices.dtype} {tuple(indices.shape)}, must be int64 [rows, k]")
    if indices.shape[:n] != tensor.shape[:n] or indices.device != tensor.device:
        raise KernelError(
            f"{op}: indices {tuple(indices.shape)} on {indices.device} does not fit "
            f"{name} {tuple(tensor.shape)} on {tensor.device}"
        )


def _same(op: str, a: tuple[str, Tensor, int], b: tuple[str, Tensor, int], what: str) -> None:
    (name_a, tensor_a, axis_a), (name_b, tensor_b, axis_b) = a, b
    if tensor_a.shape[axis_a] != tensor_b.shape[axis_b]:
        raise KernelError(
            f"{op}: {what} differs: {name_a} is {tuple(tensor_a.shape)}, {name_b} is {tuple(tensor_b.shape)}"
        )
