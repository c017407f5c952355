"""One hooked transformer stack for the zoo, BERT-style encoders, CLIP, ViT and DINO.

The stack holds a checkpoint's own weights, computes what its library computes, and passes every activation through a
`Tape` under TransformerLens's names. What costs extra (scores, patterns, per-head results, split inputs) is computed
only where the tape wants it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.subjects.protocol import HookPoint
from workbench.subjects.tape import Tape

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
}


@dataclass(frozen=True)
class Architecture:
    """The shape of a stack of transformer blocks.

    Attributes
    ----------
    n_layers, d_model, n_heads, d_head, d_mlp : int
        Sizes; `d_mlp` 0 leaves the MLP out (attention only).
    n_key_value_heads : int
        Fewer than `n_heads` for grouped-query attention.
    norm : "pre" or "post"
        Layer norm before each part (GPT-2, CLIP, ViT) or after each sum (BERT); "none" for constructed models.
    norm_epsilon : float
        Added to the variance.
    activation : str
        Of the MLP.
    gated : bool
        ``activation(x @ W_gate) * (x @ W_in)``, as in SwiGLU.
    causal : bool
        Position i sees positions up to i.
    layer_scale : bool
        Each part is multiplied by a learned vector before it enters the residual stream (DINOv2).
    rotary_base : float, optional
        Rotate queries and keys by position (pairs of the first and second half of a head's entries).
    qkv_bias, key_bias, out_bias, mlp_bias : bool
        Which linear maps carry a bias.
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_head: int
    d_mlp: int
    n_key_value_heads: int | None = None
    norm: Literal["pre", "post", "none"] = "pre"
    norm_epsilon: float = 1e-5
    activation: Activation = "gelu"
    gated: bool = False
    causal: bool = False
    layer_scale: bool = False
    rotary_base: float | None = None
    qkv_bias: bool = True
    key_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.n_key_value_heads or self.n_heads

    def block_hook_points(self, layer: int) -> list[HookPoint]:
        """Hook points of one block, in the order in which a forward pass reaches them."""
        d, h, kv, dh, m = self.d_model, self.n_heads, self.kv_heads, self.d_head, self.d_mlp
        bp, stream = ("batch", "pos"), ("batch", "pos", "d_model")

        def at(name: str, axes: tuple[str, ...], *sizes: int | None) -> HookPoint:
            return HookPoint(f"blocks.{layer}.{name}", axes, sizes)

        def resid(name: str) -> HookPoint:
            return at(name, stream, None, None, d)

        pre, post = self.norm == "pre", self.norm == "post"
        points = [resid("hook_resid_pre")]
        points += [
            at(f"hook_{x}_input", (*bp, "head", "d_model"), None, None, n, d)
            for x, n in zip("qkv", (h, kv, kv), strict=True)
        ]
        if pre:
            points += [at("ln1.hook_scale", (*bp, "scale"), None, None, 1), resid("ln1.hook_normalized")]
        points += [
            at(f"attn.hook_{x}", (*bp, "head", "d_head"), None, None, n, dh)
            for x, n in zip("qkv", (h, kv, kv), strict=True)
        ]
        if self.rotary_base:
            points += [
                at(f"attn.hook_rot_{x}", (*bp, "head", "d_head"), None, None, n, dh)
                for x, n in zip("qk", (h, kv), strict=True)
            ]
        square = ("batch", "head", "query", "key")
        points += [
            at("attn.hook_attn_scores", square, None, h, None, None),
            at("attn.hook_pattern", square, None, h, None, None),
            at("attn.hook_z", (*bp, "head", "d_head"), None, None, h, dh),
            at("attn.hook_result", (*bp, "head", "d_model"), None, None, h, d),
            resid("hook_attn_out"),
            resid("hook_resid_mid"),
        ]
        if post:
            points += [at("ln1.hook_scale", (*bp, "scale"), None, None, 1), resid("hook_normalized_resid_mid")]
        if m:
            points += [resid("hook_mlp_in")]
            if pre:
                points += [at("ln2.hook_scale", (*bp, "scale"), None, None, 1), resid("ln2.hook_normalized")]
            points += [at("mlp.hook_pre", (*bp, "d_mlp"), None, None, m)]
            if self.gated:
                points += [at("mlp.hook_pre_linear", (*bp, "d_mlp"), None, None, m)]
            points += [at("mlp.hook_post", (*bp, "d_mlp"), None, None, m), resid("hook_mlp_out")]
        points += [resid("hook_resid_post")]
        if post:
            points += [at("ln2.hook_scale", (*bp, "scale"), None, None, 1), resid("hook_normalized_resid_post")]
        return points


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of entries by position. x [batch, pos, head, d_head]; cos, sin [pos, d_head / 2]."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :].to(x.dtype), sin[:, None, :].to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class HookedLayerNorm(nn.LayerNorm):
    """Layer norm that shows its scale (the standard deviation it divides by) and its output."""

    def hooked(self, x: Tensor, tape: Tape, scale_name: str, output_name: str) -> Tensor:
        """Normalise x [batch, pos, d_model] past two hook points: the scale, and the norm's output."""
        if tape.wants(scale_name):
            centred = x - x.mean(-1, keepdim=True)
            scale, changed = tape.rewritten(scale_name, (centred.pow(2).mean(-1, keepdim=True) + self.eps).sqrt())
            if changed:
                return tape(output_name, centred / scale * self.weight + self.bias)
        return tape(output_name, self(x))


class Attention(nn.Module):
    """Multi-head attention, grouped-query where the architecture says so."""

    def __init__(self, arch: Architecture, prefix: str) -> None:
        super().__init__()
        self.arch, self.prefix = arch, prefix
        heads, kv, dh, d = arch.n_heads, arch.kv_heads, arch.d_head, arch.d_model
        self.q = nn.Linear(d, heads * dh, bias=arch.qkv_bias)
        self.k = nn.Linear(d, kv * dh, bias=arch.qkv_bias and arch.key_bias)
        self.v = nn.Linear(d, kv * dh, bias=arch.qkv_bias)
        self.o = nn.Linear(heads * dh, d, bias=arch.out_bias)

    def project(self, which: str, x: Tensor) -> Tensor:
        """x [batch, pos, d_model] -> [batch, pos, head, d_head]."""
        return getattr(self, which)(x).unflatten(-1, (-1, self.arch.d_head))

    def project_split(self, which: str, x: Tensor) -> Tensor:
        """x [batch, pos, head, d_model], each head reading its own copy -> [batch, pos, head, d_head]."""
        linear: nn.Linear = getattr(self, which)
        weight = linear.weight.view(-1, self.arch.d_head, self.arch.d_model)
        out = torch.einsum("bphd,hed->bphe", x, weight)
        return out if linear.bias is None else out + linear.bias.view(-1, self.arch.d_head)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, tape: Tape) -> Tensor:
        """q [batch, pos, head, d_head], k, v [batch, pos, kv_head, d_head], mask True where seen -> [batch, pos, d_model]."""
        at = self.prefix + "attn.hook_"
        repeats = self.arch.n_heads // self.arch.kv_heads
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if repeats > 1:
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        z, explicit = None, False
        if tape.wants(at + "attn_scores", at + "pattern"):
            pattern, explicit = self.pattern(q, k, mask, tape)
            z = pattern @ v
        if not explicit:
            causal = self.arch.causal and mask is None and q.shape[2] > 1
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        assert z is not None
        z = tape(at + "z", z.transpose(1, 2))
        if tape.wants(at + "result"):
            weight = self.o.weight.view(self.arch.d_model, self.arch.n_heads, self.arch.d_head)
            result, changed = tape.rewritten(at + "result", torch.einsum("bphe,dhe->bphd", z, weight))
            if changed:
                out = result.sum(2)
                return out if self.o.bias is None else out + self.o.bias
        return self.o(z.flatten(2))

    def pattern(self, q: Tensor, k: Tensor, mask: Tensor | None, tape: Tape) -> tuple[Tensor, bool]:
        """Scores and pattern in the open, q, k [batch, head, pos, d_head]. Returns the pattern, whether to use it."""
        at = self.prefix + "attn.hook_"
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.arch.d_head)
        if self.arch.causal and mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        scores, changed = tape.rewritten(at + "attn_scores", scores)
        pattern, changed_too = tape.rewritten(at + "pattern", scores.softmax(-1))
        return pattern, changed or changed_too


class MLP(nn.Module):
    """Two linear maps with an activation between, or three if gated."""

    def __init__(self, arch: Architecture, prefix: str) -> None:
        super().__init__()
        self.prefix, self.act, self.gated = prefix, ACTIVATIONS[arch.activation], arch.gated
        self.inner = nn.Linear(arch.d_model, arch.d_mlp, bias=arch.mlp_bias)
        if arch.gated:
            self.gate = nn.Linear(arch.d_model, arch.d_mlp, bias=arch.mlp_bias)
        self.outer = nn.Linear(arch.d_mlp, arch.d_model, bias=arch.mlp_bias)

    def forward(self, x: Tensor, tape: Tape) -> Tensor:
        """x [batch, pos, d_model] -> [batch, pos, d_model]."""
        at = self.prefix + "mlp.hook_"
        if self.gated:
            pre = tape(at + "pre", self.gate(x))
            post = self.act(pre) * tape(at + "pre_linear", self.inner(x))
        else:
            post = self.act(tape(at + "pre", self.inner(x)))
        return self.outer(tape(at + "post", post))


class Block(nn.Module):
    """Attention and MLP on the residual stream."""

    def __init__(self, arch: Architecture, layer: int) -> None:
        super().__init__()
        self.arch, self.prefix = arch, f"blocks.{layer}."
        self.attn = Attention(arch, self.prefix)
        if arch.d_mlp:
            self.mlp = MLP(arch, self.prefix)
        if arch.norm != "none":
            self.ln1 = HookedLayerNorm(arch.d_model, eps=arch.norm_epsilon)
            if arch.d_mlp:
                self.ln2 = HookedLayerNorm(arch.d_model, eps=arch.norm_epsilon)
        if arch.layer_scale:
            self.ls1 = nn.Parameter(torch.ones(arch.d_model))
            if arch.d_mlp:
                self.ls2 = nn.Parameter(torch.ones(arch.d_model))

    def forward(self, x: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor] | None, tape: Tape) -> Tensor:
        """x [batch, pos, d_model] -> [batch, pos, d_model]."""
        at, arch = self.prefix, self.arch
        x = tape(at + "hook_resid_pre", x)
        out = self.attn(*self.queries_keys_values(x, rotary, tape), mask, tape)
        out = tape(at + "hook_attn_out", out * self.ls1 if arch.layer_scale else out)
        x = tape(at + "hook_resid_mid", x + out)
        if arch.norm == "post":
            x = self.ln1.hooked(x, tape, at + "ln1.hook_scale", at + "hook_normalized_resid_mid")
        if arch.d_mlp:
            into = tape(at + "hook_mlp_in", x)
            if arch.norm == "pre":
                into = self.ln2.hooked(into, tape, at + "ln2.hook_scale", at + "ln2.hook_normalized")
            out = self.mlp(into, tape)
            x = x + tape(at + "hook_mlp_out", out * self.ls2 if arch.layer_scale else out)
        x = tape(at + "hook_resid_post", x)
        if arch.norm == "post" and arch.d_mlp:
            x = self.ln2.hooked(x, tape, at + "ln2.hook_scale", at + "hook_normalized_resid_post")
        return x

    def queries_keys_values(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, tape: Tape
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project the residual stream x [batch, pos, d_model]; a split input gives each head its own copy of it."""
        at, arch = self.prefix, self.arch
        splits: dict[str, Tensor] = {}
        for which in "qkv":
            name = f"{at}hook_{which}_input"
            if tape.wants(name):
                heads = arch.n_heads if which == "q" else arch.kv_heads
                copies, changed = tape.rewritten(name, x.unsqueeze(2).expand(-1, -1, heads, -1))
                if changed:
                    splits[which] = copies
        if arch.norm == "pre":
            x = self.ln1.hooked(x, tape, at + "ln1.hook_scale", at + "ln1.hook_normalized")
        projected = []
        for which in "qkv":
            if which in splits:
                copies = self.ln1(splits[which]) if arch.norm == "pre" else splits[which]
                value = self.attn.project_split(which, copies)
            else:
                value = self.attn.project(which, x)
            projected.append(tape(f"{at}attn.hook_{which}", value))
        q, k, v = projected
        if rotary is not None:
            q = tape(at + "attn.hook_rot_q", rotate(q, *rotary))
            k = tape(at + "attn.hook_rot_k", rotate(k, *rotary))
        return q, k, v

    def weight(self, role: str) -> Tensor | None:
        """Return one of the block's weights by role (see `Subject.weights`), a view; None if absent."""
        arch, attn = self.arch, self.attn
        heads = {"Q": attn.q, "K": attn.k, "V": attn.v}
        match role:
            case "W_Q" | "W_K" | "W_V":
                return heads[role[-1]].weight.view(-1, arch.d_head, arch.d_model).transpose(1, 2)
            case "b_Q" | "b_K" | "b_V":
                bias = heads[role[-1]].bias
                return None if bias is None else bias.view(-1, arch.d_head)
            case "W_O":
                return attn.o.weight.view(arch.d_model, arch.n_heads, arch.d_head).permute(1, 2, 0)
            case "b_O":
                return attn.o.bias
            case "ln1.w" | "ln1.b" | "ln2.w" | "ln2.b":
                norm = getattr(self, role[:3], None)
                return None if norm is None else (norm.weight if role.endswith("w") else norm.bias)
            case "ls1" | "ls2":
                return getattr(self, role, None)
        if not arch.d_mlp:
            return None
        match role:
            case "W_in":
                return self.mlp.inner.weight.T
            case "b_in":
                return self.mlp.inner.bias
            case "W_gate":
                return self.mlp.gate.weight.T if arch.gated else None
            case "b_gate":
                return self.mlp.gate.bias if arch.gated else None
            case "W_out":
                return self.mlp.outer.weight.T
            case "b_out":
                return self.mlp.outer.bias
        return None


BLOCK_ROLES = (
    "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "W_gate", "b_in", "b_gate", "W_out", "b_out",
    "ln1.w", "ln1.b", "ln2.w", "ln2.b", "ls1", "ls2",
)  # fmt: skip


class Stack(nn.Module):
    """A stack of blocks."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.blocks = nn.ModuleList(Block(arch, layer) for layer in range(arch.n_layers))

    def forward(self, x: Tensor, mask: Tensor, tape: Tape) -> Tensor:
        """x [batch, pos, d_model], mask [batch, pos] False at padding -> [batch, pos, d_model]."""
        seen = self.visible(mask)
        rotary = self.rotary(x.shape[1], x.device)
        for block in self.blocks:
            x = block(x, seen, rotary, tape)
        return x

    def visible(self, mask: Tensor) -> Tensor | None:
        """Return [batch, 1, query, key], True where a query sees a key; None if it sees all (or all before it)."""
        if self.arch.causal:
            return None  # padding is on the right, so no real position sees it
        return None if bool(mask.all()) else mask[:, None, None, :]

    def rotary(self, n: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine [pos, d_head / 2] of rotary positions."""
        if not self.arch.rotary_base:
            return None
        half = self.arch.d_head // 2
        rate = self.arch.rotary_base ** (-torch.arange(half, device=device, dtype=torch.float64) / half)
        angle = torch.arange(n, device=device, dtype=torch.float64)[:, None] * rate
        return angle.cos(), angle.sin()
