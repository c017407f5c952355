"""TopK encoding and sparse decoding, with gradients that touch the k active latents of each row and no others.

Four operators, registered with `torch.library` under `workbench::`; this module holds their definition in plain
PyTorch, which runs on every device. They are closed under differentiation: the backward of each is made of the others,
so that second derivatives exist too.

==================  ==========================================================================
`topk_encode`       x, W_enc, b_enc, k -> the k best latents of each row and their scores
`sparse_decode`     values, indices, W_dec, b_dec -> rows, sums of k decoder rows
`gathered_dot`      x, indices, W -> x[r] · W[indices[r, i]]
`scatter_outer`     values, indices, x, n -> W-shaped sums of values[r, i] x[r]
==================  ==========================================================================

No [rows, latents] matrix is ever held: scores are formed in tiles and merged into a running top k.

Numbers. Scores of float16 and bfloat16 inputs are formed and ranked in float32, and rounded to the inputs' dtype once
selected (float16 overflows to infinity beyond 65504). Latents are listed by descending score, equal scores by ascending
index. A NaN score ranks as minus infinity, below every finite one; if it is selected all the same, because fewer
than k others are left, its value is NaN: a broken row is seen, not hidden. +inf ranks first.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.kernels.errors import KernelError
from workbench.kernels.selection import ranked

TILE_ROWS = 1024
TILE_LATENTS = 4096

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
    values, indices = _topk_encode(x, W_enc, b_enc, k)
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
    out: Tensor = _sparse_decode(values, indices, W_dec)
    return out if b_dec is None else out + b_dec


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
    out: Tensor = _gathered_dot(x, indices, W)
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
    out: Tensor = _scatter_outer(values, indices, x, n_latents)
    return out


# --- operators ----------------------------------------------------------------------------------------------------
@torch.library.custom_op("workbench::topk_encode", mutates_args=())
def _topk_encode(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    values = torch.empty(x.shape[0], 0, dtype=exact, device=x.device)
    indices = torch.empty(x.shape[0], 0, dtype=torch.int64, device=x.device)
    for tile in _slices(W_enc.shape[0], TILE_LATENTS):
        W, b = W_enc[tile].to(exact), b_enc[tile].to(exact)
        merged = [
            _merge(values[rows], indices[rows], torch.addmm(b, x[rows].to(exact), W.T), tile.start, k)
            for rows in _slices(x.shape[0], TILE_ROWS)
        ]
        if merged:
            values, indices = (torch.cat(parts) for parts in zip(*merged, strict=True))
        else:
            values, indices = (t.new_empty(0, min(k, tile.stop)) for t in (values, indices))
    lost = (values == -torch.inf).nonzero(as_tuple=True)
    if lost[0].numel():  # minus infinity in truth, or NaN: say which
        latents = indices[lost]
        values[lost] = (x[lost[0]].to(exact) * W_enc[latents].to(exact)).sum(1) + b_enc[latents].to(exact)
    return values.to(x.dtype), indices


def _merge(values: Tensor, indices: Tensor, scores: Tensor, start: int, k: int) -> tuple[Tensor, Tensor]:
    """Merge a tile's scores [rows, tile], latents `start` and on, into a running top k of lower latents."""
    scores = scores.nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    here = ranked(scores, min(k, scores.shape[1]))
    if not values.shape[1]:
        return scores.gather(1, here), here + start
    values = torch.cat([values, scores.gather(1, here)], dim=1)
    indices = torch.cat([indices, here + start], dim=1)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]  # lower latents stand first, so they win ties
    return values.gather(1, order), indices.gather(1, order)


@torch.library.custom_op("workbench::sparse_decode", mutates_args=())
def _sparse_decode(values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    if not values.numel():
        return W_dec.new_zeros(values.shape[0], W_dec.shape[1])
    return F.embedding_bag(indices, W_dec, mode="sum", per_sample_weights=values)


@torch.library.custom_op("workbench::gathered_dot", mutates_args=())
def _gathered_dot(x: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    rows, k = indices.shape
    if not indices.numel() or not W.shape[1]:
        return x.new_zeros(rows, k)
    # What embedding_bag itself calls for the gradient of its weights: ten times as fast as gathering rows of W.
    starts = torch.arange(0, rows * k, k, device=x.device)
    owner = torch.arange(rows, device=x.device).repeat_interleave(k)
    flat = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x.contiguous(), W, indices.flatten(), starts, owner, 0
    )
    dots: Tensor = flat.view(rows, k)
    return dots


@torch.library.custom_op("workbench::scatter_outer", mutates_args=())
def _scatter_outer(values: Tensor, indices: Tensor, x: Tensor, n_latents: int) -> Tensor:
    if not values.numel():
        return x.new_zeros(n_latents, x.shape[1])
    # A bag per latent, holding the rows in which it is active.
    latents, order = indices.flatten().sort(stable=True)
    starts = torch.searchsorted(latents, torch.arange(n_latents, device=x.device))
    weights = values.flatten()[order]
    return F.embedding_bag(order // values.shape[1], x, starts, mode="sum", per_sample_weights=weights)


def _slices(n: int, step: int) -> Iterator[slice]:
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


# --- shapes, for torch.compile ------------------------------------------------------------------------------------
@_topk_encode.register_fake
def _(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], k), x.new_empty(x.shape[0], k, dtype=torch.int64)


@_sparse_decode.register_fake
def _(values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    return W_dec.new_empty(values.shape[0], W_dec.shape[1])


@_gathered_dot.register_fake
def _(x: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    return x.new_empty(indices.shape)


@_scatter_outer.register_fake
def _(values: Tensor, indices: Tensor, x: Tensor, n_latents: int) -> Tensor:
    return x.new_empty(n_latents, x.shape[1])


# --- gradients ----------------------------------------------------------------------------------------------------
# d/dvalues, d/dW, d/dx of  decode = sum v W[i],  dot = x·W[i],  scatter = sum v x  are again one of the three.
def _save_encode(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, W_enc, b_enc, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, W_enc, output[1])
    ctx.n_latents = b_enc.shape[0]


def _encode_backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    x, W_enc, indices = ctx.saved_tensors
    wants_x, wants_W, wants_b, *_rest = ctx.needs_input_grad
    grad_x = _sparse_decode(grad, indices, W_enc) if wants_x else None
    grad_W = _scatter_outer(grad, indices, x, ctx.n_latents) if wants_W else None
    grad_b = _scatter_outer(grad, indices, grad.new_ones(grad.shape[0], 1), ctx.n_latents) if wants_b else None
    return grad_x, grad_W, None if grad_b is None else grad_b.squeeze(1), None


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _decode_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, W_dec = ctx.saved_tensors
    wants_values, _, wants_W = ctx.needs_input_grad
    grad_values = _gathered_dot(grad, indices, W_dec) if wants_values else None
    grad_W = _scatter_outer(values, indices, grad, W_dec.shape[0]) if wants_W else None
    return grad_values, None, grad_W


def _dot_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, indices, W = ctx.saved_tensors
    wants_x, _, wants_W = ctx.needs_input_grad
    grad_x = _sparse_decode(grad, indices, W) if wants_x else None
    grad_W = _scatter_outer(grad, indices, x, W.shape[0]) if wants_W else None
    return grad_x, None, grad_W


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, x = ctx.saved_tensors
    wants_values, _, wants_x, *_rest = ctx.needs_input_grad
    grad_values = _gathered_dot(x, indices, grad) if wants_values else None
    grad_x = _sparse_decode(values, indices, grad) if wants_x else None
    return grad_values, None, grad_x, None


_topk_encode.register_autograd(_encode_backward, setup_context=_save_encode)
_sparse_decode.register_autograd(_decode_backward, setup_context=_save_all)
_gathered_dot.register_autograd(_dot_backward, setup_context=_save_all)
_scatter_outer.register_autograd(_scatter_backward, setup_context=_save_all)


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
