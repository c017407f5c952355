"""Direct effect of a direction in the residual stream on the output tokens."""

from __future__ import annotations

import re

from torch import Tensor

from workbench.errors import UserError
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
    weights: dict[str, Tensor] = {}
    for role in ("W_U", "ln_final.w", "ln_final.b"):
        try:
            weights[role] = subject.weights(role)
        except UserError:
            continue
    if "W_U" not in weights:
        return None
    unembedding = weights["W_U"].float()
    through = directions.to(unembedding.device).float()
    if "ln_final.b" in weights:
        through = through - through.mean(1, keepdim=True)
    if "ln_final.w" in weights:
        through = through * weights["ln_final.w"].float()
    effect = through @ unembedding
    return effect - effect.mean(1, keepdim=True)
