"""Torch hooks that hand a module's input or output to the forward pass under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from workbench.subjects.bridge_attention import CURRENT, Pass

Value = Callable[[Pass, Tensor], Tensor]


def on_output(module: nn.Module, pass_on: Callable[[Pass, Tensor, Tensor], Tensor]) -> None:
    """Call ``pass_on(running, input, output)`` after a module; the first tensor goes in and comes out."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        running = CURRENT.get()
        if running is None:
            return None
        first = output[0] if isinstance(output, tuple) else output
        given = args[0] if args else next(iter(kwargs.values()), first)
        after = pass_on(running, given, first)
        if after is first:
            return None
        return (after, *output[1:]) if isinstance(output, tuple) else after

    module.register_forward_hook(hook, with_kwargs=True)


def on_input(module: nn.Module, pass_on: Value) -> None:
    """Call ``pass_on(running, input)`` before a module."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        running = CURRENT.get()
        if running is None:
            return None
        if args:
            after = pass_on(running, args[0])
            return None if after is args[0] else ((after, *args[1:]), kwargs)
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        after = pass_on(running, kwargs[name])
        return None if after is kwargs[name] else (args, {**kwargs, name: after})

    module.register_forward_pre_hook(hook, with_kwargs=True)


def through(running: Pass, name: str, value: Tensor, n_heads: int | None = None) -> Tensor:
    """Pass a hook point in the shape that it declares; the value comes back in the shape in which it came.

    Parameters
    ----------
    running : Pass
        The forward pass.
    name : str
        The hook point.
    value : Tensor [batch, pos, width] or [batch * pos, width]
        OPT flattens batch and position around its MLP.
    n_heads : int, optional
        Show the width as [head, width / head].
    """
    tape = running.tape
    if not tape.wants(name):
        return value
    shape = tuple(tape.batch.inputs.shape)
    shown = value if value.dim() == 3 else value.reshape(*shape, -1)
    if n_heads is not None:
        shown = by_head(shown, n_heads)
    after = tape(name, shown)
    return value if after is shown else after.reshape(value.shape)


def by_head(x: Tensor, n_heads: int) -> Tensor:
    """x [..., head * d_head] -> [..., head, d_head], a view."""
    return x.view(*x.shape[:-1], n_heads, -1)


def wire_norm(norm: nn.Module, prefix: str, output_name: str | None = None) -> None:
    """Show what a norm divides by (``hook_scale``) and its output.

    Parameters
    ----------
    norm : Module
        Layer norm, RMS norm, or another, whose output alone is shown.
    prefix : str
        Such as ``blocks.0.ln1.``.
    output_name : str, optional
        Hook point of the output, ``hook_normalized`` under the prefix by default.
    """
    named = output_name or prefix + "hook_normalized"
    kind = type(norm).__name__
    centred = isinstance(norm, nn.LayerNorm) or "LayerNorm" in kind
    epsilon: float | None = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
    known = epsilon is not None and (centred or "RMSNorm" in kind)

    def scale_of(x: Tensor) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        wide = wide - wide.mean(-1, keepdim=True) if centred else wide
        return (wide.pow(2).mean(-1, keepdim=True) + (epsilon or 0.0)).sqrt()

    def output(running: Pass, x: Tensor, y: Tensor) -> Tensor:
        name = prefix + "hook_scale"
        if known and running.tape.wants(name):
            scale = scale_of(x).to(y.dtype)
            shown = scale if scale.dim() == 3 else scale.reshape(*running.tape.batch.inputs.shape, 1)
            after, changed = running.tape.rewritten(name, shown)
            if changed:  # the norm's output is (x - mean) / scale * weight + bias
                bias = getattr(norm, "bias", None)
                bare = y if bias is None else y - bias
                bare = bare * (scale / after.reshape(scale.shape))
                y = bare if bias is None else bare + bias
        return through(running, named, y)

    on_output(norm, output)
