"""The operators behind `workbench.kernels.topk`: schema, reference kernel, shapes and gradients of each.

Defined by schema rather than by `torch.library.custom_op`, whose first call imports torch's compiler for seconds.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.kernels import encoding

ANY_DEVICE = "CompositeExplicitAutograd"  # torch's name for a kernel that every device runs

Function = TypeVar("Function", bound=Callable[..., Any])


def _reference(name: str) -> Callable[[Function], Function]:
    """Register a function for every device, and keep it callable: kernels fall back to it."""

    def register(function: Function) -> Function:
        torch.library.impl(f"workbench::{name}", ANY_DEVICE)(function)
        return function

    return register


torch.library.define("workbench::topk_encode", "(Tensor x, Tensor W_enc, Tensor b_enc, SymInt k) -> (Tensor, Tensor)")


@_reference("topk_encode")
def topk_encode_reference(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Choose by torch's product and a bound on its error, then compute the chosen ones exactly."""
    return encoding.topk_encode(x, W_enc, b_enc, k)


torch.library.define("workbench::sparse_decode", "(Tensor values, Tensor indices, Tensor W_dec) -> Tensor")


@_reference("sparse_decode")
def sparse_decode_reference(values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    """Sum decoder rows; torch sums low precision in float32."""
    if not values.numel():
        return W_dec.new_zeros(values.shape[0], W_dec.shape[1])
    return F.embedding_bag(indices.contiguous(), W_dec, mode="sum", per_sample_weights=values.contiguous())


torch.library.define("workbench::gathered_dot", "(Tensor x, Tensor indices, Tensor W) -> Tensor")


@_reference("gathered_dot")
def gathered_dot_reference(x: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    """Dot rows of x with gathered rows of W, never holding [rows, k, width]."""
    rows, k = indices.shape
    if not indices.numel() or not W.shape[1]:
        return x.new_zeros(rows, k)
    # What embedding_bag itself calls for the gradient of its weights: ten times as fast as gathering rows of W.
    starts = torch.arange(0, rows * k, k, device=x.device)
    owner = torch.arange(rows, device=x.device).repeat_interleave(k)
    flat = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        x.contiguous(), W, indices.flatten().contiguous(), starts, owner, 0
    )
    dots: Tensor = flat.view(rows, k)
    return dots


torch.library.define(
    "workbench::scatter_outer", "(Tensor values, Tensor indices, Tensor x, SymInt n_latents) -> Tensor"
)


@_reference("scatter_outer")
def scatter_outer_reference(values: Tensor, indices: Tensor, x: Tensor, n_latents: int) -> Tensor:
    """Sum rows of x into latents, in row order."""
    if not values.numel():
        return x.new_zeros(n_latents, x.shape[1])
    # A bag per latent, holding the rows in which it is active.
    latents, order = indices.flatten().contiguous().sort(stable=True)  # a flattened view may have gaps
    starts = torch.searchsorted(latents, torch.arange(n_latents, device=x.device))
    weights = values.flatten()[order]
    return F.embedding_bag(order // values.shape[1], x, starts, mode="sum", per_sample_weights=weights)


torch.library.define(
    "workbench::decode_error",
    "(Tensor values, Tensor indices, Tensor W_dec, Tensor b_dec, Tensor target) -> (Tensor, Tensor, Tensor)",
)


@_reference("decode_error")
def decode_error_reference(
    values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode, take from the target, square and sum; and multiply what is left with the rows of W_dec once more."""
    left = target - (sparse_decode(values, indices, W_dec) + b_dec)  # by whatever kernels the device has
    return left.pow(2).sum(1), left, gathered_dot(left, indices, W_dec)


topk_encode = torch.ops.workbench.topk_encode.default
sparse_decode = torch.ops.workbench.sparse_decode.default
gathered_dot = torch.ops.workbench.gathered_dot.default
scatter_outer = torch.ops.workbench.scatter_outer.default
decode_error = torch.ops.workbench.decode_error.default


# --- shapes, for torch.compile; torch leaves this decorator untyped -----------------------------------------------
@torch.library.register_fake("workbench::topk_encode")  # type: ignore[untyped-decorator]
def _(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], k), x.new_empty(x.shape[0], k, dtype=torch.int64)


@torch.library.register_fake("workbench::sparse_decode")  # type: ignore[untyped-decorator]
def _(values: Tensor, indices: Tensor, W_dec: Tensor) -> Tensor:
    return W_dec.new_empty(values.shape[0], W_dec.shape[1])


@torch.library.register_fake("workbench::gathered_dot")  # type: ignore[untyped-decorator]
def _(x: Tensor, indices: Tensor, W: Tensor) -> Tensor:
    return x.new_empty(indices.shape)


@torch.library.register_fake("workbench::scatter_outer")  # type: ignore[untyped-decorator]
def _(values: Tensor, indices: Tensor, x: Tensor, n_latents: int) -> Tensor:
    return x.new_empty(n_latents, x.shape[1])


@torch.library.register_fake("workbench::decode_error")  # type: ignore[untyped-decorator]
def _(values: Tensor, indices: Tensor, W_dec: Tensor, b_dec: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return target.new_empty(target.shape[0]), target.new_empty(target.shape), target.new_empty(indices.shape)


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
    grad_x = sparse_decode(grad, indices, W_enc) if wants_x else None
    grad_W = scatter_outer(grad, indices, x, ctx.n_latents) if wants_W else None
    grad_b = scatter_outer(grad, indices, grad.new_ones(grad.shape[0], 1), ctx.n_latents) if wants_b else None
    return grad_x, grad_W, None if grad_b is None else grad_b.squeeze(1), None


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _decode_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, W_dec = ctx.saved_tensors
    wants_values, _, wants_W = ctx.needs_input_grad
    grad_values = gathered_dot(grad, indices, W_dec) if wants_values else None
    grad_W = scatter_outer(values, indices, grad, W_dec.shape[0]) if wants_W else None
    return grad_values, None, grad_W


def _dot_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, indices, W = ctx.saved_tensors
    wants_x, _, wants_W = ctx.needs_input_grad
    grad_x = sparse_decode(grad, indices, W) if wants_x else None
    grad_W = scatter_outer(grad, indices, x, W.shape[0]) if wants_W else None
    return grad_x, None, grad_W


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, x = ctx.saved_tensors
    wants_values, _, wants_x, *_rest = ctx.needs_input_grad
    grad_values = gathered_dot(x, indices, grad) if wants_values else None
    grad_x = sparse_decode(values, indices, grad) if wants_x else None
    return grad_values, None, grad_x, None


def _save_error(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, left, dots = output
    ctx.mark_non_differentiable(left, dots)
    ctx.save_for_backward(*inputs, left, dots)


def _error_backward(ctx: Any, grad: Tensor, _left: Any, _dots: Any) -> tuple[Tensor | None, ...]:
    values, indices, W_dec, b_dec, target, left, dots = ctx.saved_tensors
    if torch.is_grad_enabled():  # to be differentiated once more: by operators that can be
        left = target - (sparse_decode(values, indices, W_dec) + b_dec)
        dots = gathered_dot(left, indices, W_dec)
    wants_values, _, wants_W, wants_b, wants_target = ctx.needs_input_grad
    twice = 2 * grad[:, None]
    return (
        -twice * dots if wants_values else None,
        None,
        scatter_outer(-twice * values, indices, left, W_dec.shape[0]) if wants_W else None,
        -(twice * left).sum(0) if wants_b else None,
        twice * left if wants_target else None,
    )


torch.library.register_autograd("workbench::topk_encode", _encode_backward, setup_context=_save_encode)
torch.library.register_autograd("workbench::sparse_decode", _decode_backward, setup_context=_save_all)
torch.library.register_autograd("workbench::gathered_dot", _dot_backward, setup_context=_save_all)
torch.library.register_autograd("workbench::scatter_outer", _scatter_backward, setup_context=_save_all)
torch.library.register_autograd("workbench::decode_error", _error_backward, setup_context=_save_error)
