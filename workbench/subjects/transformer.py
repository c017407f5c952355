"""One hooked transformer stack for the zoo, BERT-style encoders, CLIP, ViT and DINO.

The stack holds a checkpoint's own weights, computes what its library computes, and passes every activation through a
`Tape` under TransformerLens's names. What costs extra (scores, patterns, per-head results, split inputs) is computed
only where the tape wants it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.subjects.architecture import ACTIVATIONS, Activation, Architecture
from workbench.subjects.tape import Tape

__all__ = ["ACTIVATIONS", "BLOCK_ROLES", "Activation", "Architecture", "Block", "HookedLayerNorm", "Rotary", "Stack"]

Rotary = tuple[Tensor, Tensor]  # cosine and sine, each [pos, d_head / 2]


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
                weight, bias = (
                    self.weight.to(x.device),
                    self.bias.to(x.device),
                )  # a spread model: x may come from elsewhere
                return tape(output_name, centred / scale * weight + bias)
        return tape(output_name, self(x))


class Attention(nn.Module):
    """Multi-head attention, grouped-query where the architecture says so."""

    def __init__(self, arch: Architecture, prefix: str) -> None:
        super().__init__()
        self.arch, self.prefix = arch, prefix
        heads, kv, dh, d = arch.n_heads, arch.kv_heads, arch.d_head, arch.d_model
        self.q = nn.Linear(d, heads * dh, bias=arch.query_bias)
        self.k = nn.Linear(d, kv * dh, bias=arch.key_bias)
        self.v = nn.Linear(d, kv * dh, bias=arch.value_bias)
        self.o = nn.Linear(heads * dh, d, bias=arch.out_bias)

    def linear(self, which: str) -> nn.Linear:
        """Return the map to queries, keys or values: `which` is q, k or v."""
        return {"q": self.q, "k": self.k, "v": self.v}[which]

    def project(self, which: str, x: Tensor) -> Tensor:
        """x [batch, pos, d_model] -> [batch, pos, head, d_head]."""
        out: Tensor = self.linear(which)(x)
        return out.view(*out.shape[:-1], -1, self.arch.d_head)

    def project_split(self, which: str, x: Tensor) -> Tensor:
        """x [batch, pos, head, d_model], each head reading its own copy -> [batch, pos, head, d_head]."""
        linear = self.linear(which)
        weight = linear.weight.view(-1, self.arch.d_head, self.arch.d_model)
        out = torch.einsum("bphd,hed->bphe", x, weight)
        return out if linear.bias is None else out + linear.bias.view(-1, self.arch.d_head)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, tape: Tape) -> Tensor:
        """q [batch, pos, head, d_head], k, v [batch, pos, kv_head, d_head] -> [batch, pos, d_model].

        `mask` broadcasts to [batch, head, query, key]: True where a query sees a key, or numbers added to the scores.
        """
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
        mixed: Tensor = self.o(z.flatten(2))
        return mixed

    def pattern(self, q: Tensor, k: Tensor, mask: Tensor | None, tape: Tape) -> tuple[Tensor, bool]:
        """Scores and pattern in the open, q, k [batch, head, pos, d_head]. Returns the pattern, whether to use it."""
        at = self.prefix + "attn.hook_"
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.arch.d_head)
        if self.arch.causal and mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
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
        out: Tensor = self.outer(tape(at + "post", post))
        return out


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

    def forward(self, x: Tensor, mask: Tensor | None, rotary: Rotary | None, tape: Tape) -> Tensor:
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

    def queries_keys_values(self, x: Tensor, rotary: Rotary | None, tape: Tape) -> tuple[Tensor, Tensor, Tensor]:
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

    def forward(
        self, x: Tensor, mask: Tensor, tape: Tape, rotary: Rotary | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """x [batch, pos, d_model], mask [batch, pos] False at padding -> [batch, pos, d_model].

        `rotary` gives the angles where positions are not simply 0, 1, 2, ...; `bias` [head, query, key] is added to
        the attention scores of every block.
        """
        seen = self.visible(mask, bias)
        rotary = self.rotary(x.shape[1], x.device) if rotary is None else rotary
        for block in self.blocks:
            x = block(x, seen, rotary, tape)
        return x

    def visible(self, mask: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return [batch, 1, 1, key], True where a key is seen; None if all are (or all up to the query's position).

        With a bias, return instead what is added to the scores.
        """
        causal = self.arch.causal  # padding is on the right, so no real position sees it
        seen = None if causal or bool(mask.all()) else mask[:, None, None, :]
        if bias is None or seen is None:
            return seen if bias is None else bias[None]
        return bias[None].masked_fill(~seen, -torch.inf)

    def rotary(self, n: int, device: torch.device) -> Rotary | None:
        """Cosine and sine of positions 0 to n - 1, in float64."""
        if not self.arch.rotary_base:
            return None
        half = self.arch.d_head // 2
        rate = self.arch.rotary_base ** (-torch.arange(half, device=device, dtype=torch.float64) / half)
        angle = torch.arange(n, device=device, dtype=torch.float64)[:, None] * rate
        return angle.cos(), angle.sin()
