"""Direct effect of a direction in the residual stream on the output tokens."""

from __future__ import annotations

import re

from torch import Tensor

from workbench.subjects.protocol import Subject

STREAM = re.compile(r"hook_(pos_)?embed|blocks\.\d+\.hook_(resid_(pre|mid|post)|attn_out|mlp_out)")


def writes_to_stream(subject: Subject, hook_point: str) -> bool:
    """Return whether what stands at a hook point is added to the residual stream, or is the stream itself."""
    return bool(STREAM.fullmatch(hook_point)) and subject.hook_points[hook_point].shape[-1] == subject.d_model


def direct_logit_effect(subject: Subject, directions: Tensor) -> Tensor | None:
    """Return how much each direction raises each output token's logit on its own way to the unembedding.

    Parameters
    ----------
    subject : Subject
        A language model with an unembedding.
    directions : Tensor [n, d_model]
        In the residual stream, for one unit of activation.

    Returns
    -------
    Tensor [n, vocab] or None
        In logits, the mean over tokens taken out (softmax does not see it); None for a subject without unembedding.

    Notes
    -----
    The final norm is taken as linear: its weights are applied, and the mean over the width is taken out where it is a
    layer norm (which has a bias; an RMS norm has none). Its division by the stream's scale, which differs from row
    to row, is left out, and so are all later layers: the numbers compare tokens for one direction, not rows.
    """
    unembedding, weight, bias = (subject.weight_or_none(role) for role in ("W_U", "ln_final.w", "ln_final.b"))
    if unembedding is None:
        return None
    unembedding = unembedding.float()
    through = directions.to(unembedding.device).float()
    if bias is not None:
        through = through - through.mean(1, keepdim=True)
    if weight is not None:
        through = through * weight.float()
    effect = through @ unembedding
    return effect - effect.mean(1, keepdim=True)
