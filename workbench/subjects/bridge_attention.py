"""Scores, patterns and rotated queries and keys inside Hugging Face's attention.

Hugging Face lets a model's attention function be chosen by name. The names registered here stand for its own functions
(``sdpa``, ``eager``) with a tap before them: the plain function runs as it is, and a pattern that nobody changes is
computed beside it. Older models (GPT-J, GPT-Neo) keep the function in a method ``_attn``.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from workbench.subjects.tape import Tape

TAP = "workbench_tap"  # attribute of an attention module: its tap
HOOKED = {"sdpa": "workbench_sdpa", "eager": "workbench_eager"}


@dataclass
class Pass:
    """The forward pass under way.

    Attributes
    ----------
    tape : Tape
        What it captures and edits.
    notes : dict of str to Tensor
        Edited values that a later part of the same block needs.
    """

    tape: Tape
    notes: dict[str, Tensor] = field(default_factory=dict)


# Hooks stay on the modules; they do something only inside `BridgeSubject.run`, in the thread that runs it.
CURRENT: ContextVar[Pass | None] = ContextVar("current forward pass", default=None)


@dataclass(frozen=True)
class AttentionTap:
    """The hook points between the projections of one attention layer.

    Attributes
    ----------
    prefix : str
        Such as ``blocks.0.attn.hook_``.
    rotary : bool
        Queries and keys arrive rotated by position.
    """

    prefix: str
    rotary: bool

    def rotated(self, tape: Tape, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Pass q and k [batch, head, pos, d_head]."""
        if not self.rotary:
            return q, k
        names = self.prefix + "rot_q", self.prefix + "rot_k"
        q, k = (
            tape(name, x.transpose(1, 2)).transpose(1, 2) if tape.wants(name) else x
            for name, x in zip(names, (q, k), strict=True)
        )
        return q, k

    def pattern(self, tape: Tape, scores: Tensor, dtype: torch.dtype) -> tuple[Tensor, bool]:
        """Pass scores and pattern [batch, head, query, key]; True if the pass must go on from this pattern.

        Both are shown in the subject's dtype; the pattern of unchanged scores is that of the exact ones.
        """
        shown, changed = tape.rewritten(self.prefix + "attn_scores", scores.to(dtype))
        weights = (shown.to(scores.dtype) if changed else scores).softmax(-1).to(dtype)
        weights, changed_too = tape.rewritten(self.prefix + "pattern", weights)
        return weights, changed or changed_too


def repeat_heads(x: Tensor, n_heads: int) -> Tensor:
    """Give each query head its own key or value head: x [batch, kv_head, pos, d_head] -> [batch, head, pos, d_head]."""
    return x if x.shape[1] == n_heads else x.repeat_interleave(n_heads // x.shape[1], dim=1)


def attention_scores(
    module: Any, q: Tensor, k: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """Masked scores before the softmax.

    Parameters
    ----------
    module : Module
        The attention layer.
    q, k : Tensor [batch, head, pos, d_head], [batch, kv_head, pos, d_head]
        Rotated.
    mask : Tensor, optional
        True where a query sees a key, or added to the scores; None for a causal layer without another mask.
    scaling : float, optional
        Factor of the scores; one over the root of `d_head` by default.
    softcap : float, optional
        Scores are squeezed between plus and minus this.

    Returns
    -------
    Tensor [batch, head, query, key]
        In float32 where q and k are narrower, as the fused functions compute inside.
    """
    if q.dtype not in (torch.float32, torch.float64):
        q, k = q.float(), k.float()
    factor = 1 / math.sqrt(q.shape[-1]) if scaling is None else scaling
    scores = q @ repeat_heads(k, q.shape[1]).transpose(-1, -2) * factor
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None and getattr(module, "is_causal", True):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -torch.inf)
    return (scores + mask).masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)


def _hooked(plain: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """Put the tap of the calling module before one of Hugging Face's attention functions."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        tap, running = module.__dict__.get(TAP), CURRENT.get()
        if tap is None or running is None:
            return plain(module, query, key, value, attention_mask, **kwargs)
        tape = running.tape
        query, key = tap.rotated(tape, query, key)
        if tape.wants(tap.prefix + "attn_scores", tap.prefix + "pattern"):
            scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
            scores = attention_scores(module, query, key, attention_mask, scaling, softcap)
            weights, changed = tap.pattern(tape, scores, value.dtype)
            if changed:
                z = weights @ repeat_heads(value, query.shape[1])
                return z.transpose(1, 2).contiguous(), None
        return plain(module, query, key, value, attention_mask, **kwargs)

    return attention


def _eager(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The function that the module's own file calls ``eager``."""
    own_file = sys.modules[type(module).__module__]
    found: tuple[Tensor, Tensor | None] = own_file.eager_attention_forward(module, *args, **kwargs)
    return found


AttentionInterface.register(HOOKED["sdpa"], _hooked(sdpa_attention_forward))
AttentionInterface.register(HOOKED["eager"], _hooked(_eager))
AttentionMaskInterface.register(HOOKED["sdpa"], sdpa_mask)
AttentionMaskInterface.register(HOOKED["eager"], eager_mask)


def tap_attention(model: Any, taps: dict[nn.Module, AttentionTap]) -> bool:
    """Put taps into the attention layers of a Hugging Face model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Keeps the attention function that it was loaded with.
    taps : dict of Module to AttentionTap
        By attention layer.

    Returns
    -------
    bool
        False if the attention can be tapped in neither way.
    """
    for module, tap in taps.items():
        module.__dict__[TAP] = tap
    if all(hasattr(module, "_attn") for module in taps):
        for module, tap in taps.items():
            module.__dict__["_attn"] = _hooked_method(module, tap)
        return True
    plain = model.config._attn_implementation
    name = HOOKED.get(plain)
    if name is None or not model._can_set_attn_implementation():
        return plain in HOOKED.values()
    model.set_attn_implementation(name)
    return True


def _hooked_method(module: Any, tap: AttentionTap) -> Callable[..., tuple[Tensor, Tensor]]:
    """Put a tap around the method ``_attn`` of an older attention layer, which returns its pattern."""
    plain = module._attn

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        running = CURRENT.get()
        if running is None:
            z, weights = plain(query, key, value, *args, **kwargs)
            return z, weights
        query, key = tap.rotated(running.tape, query, key)
        z, weights = plain(query, key, value, *args, **kwargs)
        if running.tape.wants(tap.prefix + "pattern"):
            weights, changed = running.tape.rewritten(tap.prefix + "pattern", weights)
            if changed:
                z = weights @ value
        return z, weights

    return attend
