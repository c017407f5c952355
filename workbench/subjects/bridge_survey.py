"""A first pass over a few tokens: the hook points, their order and shapes, and whether their sums hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.protocol import Batch, HookPoint
from workbench.subjects.tape import Tape

if TYPE_CHECKING:
    from workbench.subjects.bridge import BridgeSubject

N_TOKENS = 3  # more than one, so that a pattern is one
SUM_STEPS = 32  # roundings allowed in a sum of three

AXES = {
    ("batch", "pos", "head", "d_model"): ("hook_q_input", "hook_k_input", "hook_v_input", "attn.hook_result"),
    ("batch", "pos", "head", "d_head"): (
        "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_rot_q", "attn.hook_rot_k", "attn.hook_z",
    ),
    ("batch", "head", "query", "key"): ("attn.hook_attn_scores", "attn.hook_pattern"),
    ("batch", "pos", "d_mlp"): ("mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post"),
    ("batch", "pos", "scale"): ("hook_scale",),
    ("batch", "pos", "vocab"): ("hook_output",),
}  # fmt: skip
FREE = {"batch", "pos", "query", "key"}


class Survey(Tape):
    """A tape that wants everything, edits nothing, and notes what passes."""

    def __init__(self, batch: Batch) -> None:
        super().__init__({}, batch)
        self.repeated: list[str] = []

    def wants(self, *names: str) -> bool:
        """Everything is wanted."""
        return True

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """Note a hook point."""
        if name in self.captured:
            self.repeated.append(name)
        self.captured[name] = value.detach()
        return value

    def rewritten(self, name: str, before: Tensor) -> tuple[Tensor, bool]:
        """Note a hook point that is computed on the side."""
        return self(name, before), False


def survey(subject: BridgeSubject) -> dict[str, HookPoint]:
    """Return the hook points of a subject in forward order.

    Raises
    ------
    UserError
        If what attention and MLP add does not sum to the residual stream, a hook point is passed twice, or the pattern
        is not the one that the attention uses: the architecture does more than its parts show. Also if the library
        cannot run the model at all (a mixture of experts in float64).
    """
    tokens = torch.arange(N_TOKENS, device=subject.device)[None] % subject.n_vocab
    mask = torch.ones_like(tokens, dtype=torch.bool)
    tape = Survey(Batch(tokens, mask, torch.zeros_like(mask)))
    kind = type(subject.model).__name__
    try:
        with torch.no_grad():
            subject.forward(tape.batch, tape)
    except RuntimeError as error:
        raise UserError(f"{subject.address} is a {kind} that does not run in {subject.dtype}: {error}") from error
    wrong = [f"{name} is passed more than once" for name in tape.repeated[:1]]
    seen = {name: value.cpu() for name, value in tape.captured.items()}  # a large model may be spread over devices
    for layer in range(subject.n_layers):
        wrong += _faults(subject, layer, seen)
    if wrong:
        raise UserError(f"{subject.address} is a {kind}, whose parts cannot be told apart exactly: {wrong[0]}")
    return {name: _hook_point(name, value) for name, value in seen.items()}


def _faults(subject: BridgeSubject, layer: int, seen: dict[str, Tensor]) -> list[str]:
    """What does not hold in one block."""
    at = f"blocks.{layer}."
    names = ["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post", "attn.hook_v", "attn.hook_z"]
    names += ["attn.hook_pattern"] + ["hook_resid_mid"] * (not subject.parts.parallel)
    missing = [at + name for name in names if at + name not in seen]
    if missing:
        return [f"{missing[0]} is never reached"]
    pre, attn_out, mlp_out, post = parts = [seen[at + name] for name in names[:4]]
    rounding = SUM_STEPS * max(torch.finfo(post.dtype).eps, torch.finfo(torch.float32).eps)  # norms may be in float32
    slack = rounding * max(float(part.abs().max()) for part in parts)
    post_norm = subject.parts.norm == "post"
    start = seen[at + "hook_normalized_resid_mid"] if post_norm else pre + attn_out
    faults = []
    if not _close(start + mlp_out, post, slack):
        faults.append(f"attention, MLP and what they start from do not sum to hook_resid_post in layer {layer}")
    if not subject.parts.parallel and not _close(pre + attn_out, seen[at + "hook_resid_mid"], slack):
        faults.append(f"hook_resid_pre and hook_attn_out do not sum to hook_resid_mid in layer {layer}")
    end = f"blocks.{layer - 1}." + ("hook_normalized_resid_post" if post_norm else "hook_resid_post")
    if layer and not torch.equal(seen[end], pre):
        faults.append(f"layer {layer} does not start from what layer {layer - 1} ends with")
    pattern, z = seen[at + "attn.hook_pattern"], seen[at + "attn.hook_z"]
    if pattern.triu(1).any():
        faults.append(f"positions see what comes after them in layer {layer}")
    values = seen[at + "attn.hook_v"].repeat_interleave(subject.n_heads // subject.n_key_value_heads, dim=2)
    share = 1e-3 if z.dtype in (torch.float32, torch.float64) else 0.1  # large scores make a softmax rough
    if not _close(torch.einsum("bhqk,bkhe->bqhe", pattern, values), z, share * float(values.abs().max())):
        faults.append(f"attn.hook_pattern times attn.hook_v is not attn.hook_z in layer {layer}")
    return faults


def _close(a: Tensor, b: Tensor, slack: float) -> bool:
    return bool((a - b).abs().max() <= slack)


def _hook_point(name: str, value: Tensor) -> HookPoint:
    axes: tuple[Any, ...] = ("batch", "pos", "d_model")
    for candidate, suffixes in AXES.items():
        if name.endswith(suffixes) and value.dim() == len(candidate):
            axes = candidate
    shape = tuple(None if axis in FREE else size for axis, size in zip(axes, value.shape, strict=True))
    return HookPoint(name, axes, shape)
