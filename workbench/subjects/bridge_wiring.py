"""Torch hooks that pass a Hugging Face model's activations through the tape, under TransformerLens's names.

The model computes what its library computes. A hook gives something else back only where an edit did, so that an edit
which returns its input changes no bit. What is not an activation of the model (per-head results, split inputs, scales)
is computed beside it, and only where the tape wants it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from workbench.subjects.bridge_attention import AttentionTap, Pass
from workbench.subjects.bridge_map import ModelParts
from workbench.subjects.bridge_passing import by_head, on_input, on_output, through, wire_norm
from workbench.subjects.bridge_weights import block_weight


class BlockWiring:
    """The hooks of one block.

    Parameters
    ----------
    model : ModelParts
        The whole model.
    layer : int
        Which block.
    """

    def __init__(self, model: ModelParts, layer: int) -> None:
        self.model, self.parts, self.prefix = model, model.blocks[layer], f"blocks.{layer}."
        self.heads = {"q": model.n_heads, "k": model.n_key_value_heads, "v": model.n_key_value_heads}
        # Granite multiplies what a part adds to the stream, and not in a module of its own.
        self.multiplier = float(getattr(self.parts.block, "residual_multiplier", 1.0))
        self.tap = AttentionTap(self.prefix + "attn.hook_", model.rotary)
        self.wire()

    def wire(self) -> None:
        """Register the hooks on the block's modules."""
        parts, prefix = self.parts, self.prefix
        on_input(parts.block, self.enter)
        if self.model.norm == "post":
            self.wire_sums()
        elif parts.ln1 is not None:
            wire_norm(parts.ln1, prefix + "ln1.")
        for which in "qkv":
            module = getattr(parts, which)
            if module is not None:
                on_output(module, self.projected(which))
        if parts.qkv is not None:
            on_output(parts.qkv, self.projected_together)
        on_input(parts.o, lambda running, z: through(running, prefix + "attn.hook_z", z, self.model.n_heads))
        on_output(parts.o, self.results)
        if parts.ln1_post is not None:
            wire_norm(parts.ln1_post, prefix + "ln1_post.")
        on_output(parts.ln1_post or parts.attn, lambda running, _, y: self.added(running, "hook_attn_out", y))
        entry = (parts.ln2 if self.model.norm == "pre" else None) or parts.mlp or parts.inner
        if entry is not None:
            on_input(entry, self.enter_mlp)
        if parts.ln2 is not None and self.model.norm == "pre":
            wire_norm(parts.ln2, prefix + "ln2.")
        self.wire_mlp()
        if parts.ln2_post is not None:
            wire_norm(parts.ln2_post, prefix + "ln2_post.")
        last = parts.ln2_post or parts.mlp or parts.out
        if last is not None:
            on_output(last, self.add_mlp)
        on_output(parts.block, self.leave)

    def wire_sums(self) -> None:
        """Post-norm: each sum goes through a norm, and the stream goes on from there."""
        for norm, ln, name in ((self.parts.ln1, "ln1.", "resid_mid"), (self.parts.ln2, "ln2.", "resid_post")):
            assert norm is not None
            hook = f"{self.prefix}hook_{name}"
            on_input(norm, lambda running, x, hook=hook: through(running, hook, x))  # type: ignore[misc]
            wire_norm(norm, self.prefix + ln, f"{self.prefix}hook_normalized_{name}")

    def wire_mlp(self) -> None:
        """Register the hooks inside the MLP, where its projections are plain linear maps."""
        parts, prefix = self.parts, self.prefix + "mlp."
        if parts.out is None:
            return
        if parts.gate_and_inner is not None:
            on_output(parts.gate_and_inner, self.gate_and_inner)
        elif parts.inner is not None:
            gated = parts.gate is not None
            if parts.gate is not None:
                on_output(parts.gate, lambda running, _, y: through(running, prefix + "hook_pre", y))
            name = prefix + ("hook_pre_linear" if gated else "hook_pre")
            on_output(parts.inner, lambda running, _, y: through(running, name, y))
        on_input(parts.out, lambda running, x: through(running, prefix + "hook_post", x))

    def enter(self, running: Pass, x: Tensor) -> Tensor:
        """Before the block: the residual stream x [batch, pos, d_model], and each head's own copy of it."""
        x = running.tape(self.prefix + "hook_resid_pre", x)
        running.notes.clear()
        running.notes["resid_pre"] = x
        for which, n_heads in self.heads.items():
            name = f"{self.prefix}hook_{which}_input"
            if running.tape.wants(name):
                copies, changed = running.tape.rewritten(name, x.unsqueeze(2).expand(-1, -1, n_heads, -1))
                if changed:
                    running.notes[which] = copies
        return x

    def normed(self, x: Tensor) -> Tensor:
        """Apply the norm before the attention to a copy of the stream, past its hook points: they are the stream's."""
        if self.parts.ln1 is None or self.model.norm == "post":
            return x
        y: Tensor = self.parts.ln1.forward(x)
        return y

    def split(self, running: Pass, which: str) -> Tensor | None:
        """Project each head's own copy of the residual stream -> [batch, pos, head * d_head]; None if none was made."""
        copies = running.notes.get(which)
        if copies is None:
            return None
        weight = block_weight(self.model, self.parts, f"W_{which.upper()}")
        bias = block_weight(self.model, self.parts, f"b_{which.upper()}")
        assert weight is not None
        own = self.normed(copies).to(weight.device)  # what enters a block may still be on the device of the one before
        out = torch.einsum("bphd,hde->bphe", own, weight)
        return (out if bias is None else out + bias).flatten(-2)

    def projected(self, which: str) -> Callable[[Pass, Tensor, Tensor], Tensor]:
        """After one of the projections: what it gave, or what each head's own copy gives."""
        name, n_heads = f"{self.prefix}attn.hook_{which}", self.heads[which]

        def output(running: Pass, _: Tensor, y: Tensor) -> Tensor:
            own = self.split(running, which)
            return through(running, name, y if own is None else own, n_heads)

        return output

    def projected_together(self, running: Pass, _: Tensor, y: Tensor) -> Tensor:
        """After a fused projection: the same for each of the three, put together again if one has changed."""
        if not running.notes.keys() & set("qkv") and not running.tape.wants(
            *(f"{self.prefix}attn.hook_{which}" for which in "qkv")
        ):
            return y
        before = [part.flatten(-2) for part in self.unfuse(y)]
        after = [self.projected(which)(running, y, part) for which, part in zip("qkv", before, strict=True)]
        if all(a is b for a, b in zip(after, before, strict=True)):
            return y
        return self.fuse([by_head(part, n_heads) for part, n_heads in zip(after, self.heads.values(), strict=True)])

    def unfuse(self, y: Tensor) -> list[Tensor]:
        """y [batch, pos, width] -> queries, keys, values [batch, pos, head, d_head], views."""
        if self.model.fused == "by_head":
            return list(y.view(*y.shape[:-1], self.model.n_heads, 3, -1).unbind(-2))
        each = by_head(y, sum(self.heads.values()))
        n_heads, n_kv = self.model.n_heads, self.model.n_key_value_heads
        return [each[..., :n_heads, :], each[..., n_heads : n_heads + n_kv, :], each[..., n_heads + n_kv :, :]]

    def fuse(self, parts: list[Tensor]) -> Tensor:
        """Undo `unfuse`."""
        if self.model.fused == "by_head":
            return torch.stack(parts, dim=-2).flatten(-3)
        return torch.cat([part.flatten(-2) for part in parts], dim=-1)

    def results(self, running: Pass, z: Tensor, y: Tensor) -> Tensor:
        """After the output projection: what each head adds [batch, pos, head, d_model]; with the bias they make y."""
        name = self.prefix + "attn.hook_result"
        if not running.tape.wants(name):
            return y
        weight = block_weight(self.model, self.parts, "W_O")
        assert weight is not None
        heads = z.reshape(*running.tape.batch.inputs.shape, self.model.n_heads, -1)
        result, changed = running.tape.rewritten(name, torch.einsum("bphe,hed->bphd", heads, weight))
        if not changed:
            return y
        bias = block_weight(self.model, self.parts, "b_O")
        out = result.sum(2)
        return (out if bias is None else out + bias).reshape(y.shape)

    def added(self, running: Pass, name: str, y: Tensor) -> Tensor:
        """After attention or MLP: what it adds to the residual stream."""
        if self.multiplier == 1.0 or not running.tape.wants(self.prefix + name):
            return through(running, self.prefix + name, y)
        after, changed = running.tape.rewritten(self.prefix + name, y * self.multiplier)
        return after / self.multiplier if changed else y

    def enter_mlp(self, running: Pass, x: Tensor) -> Tensor:
        """Where the MLP's branch leaves the residual stream."""
        if self.model.parallel:
            if self.parts.ln2 is not None:
                return through(running, self.prefix + "hook_mlp_in", x)
            name = self.prefix + "hook_mlp_in"
            if running.tape.wants(name):  # one norm for both parts: its output comes in here
                into, changed = running.tape.rewritten(name, running.notes["resid_pre"])
                if changed:
                    return self.normed(into).to(x.device)
            return x
        if self.model.norm == "post":
            return through(running, self.prefix + "hook_mlp_in", x)
        mid = through(running, self.prefix + "hook_resid_mid", x)
        if mid is not x:
            running.notes["resid_mid"] = mid
        return through(running, self.prefix + "hook_mlp_in", mid)

    def gate_and_inner(self, running: Pass, _: Tensor, y: Tensor) -> Tensor:
        """After the MLP's fused projection, whose first half is the gate."""
        gate, inner = before = y.chunk(2, dim=-1)
        after = (
            through(running, self.prefix + "mlp.hook_pre", gate),
            through(running, self.prefix + "mlp.hook_pre_linear", inner),
        )
        return y if all(a is b for a, b in zip(after, before, strict=True)) else torch.cat(after, dim=-1)

    def add_mlp(self, running: Pass, _: Tensor, y: Tensor) -> Tensor:
        """After the MLP; remembered where an edit of the residual stream before it has to be carried past it."""
        y = self.added(running, "hook_mlp_out", y)
        if "resid_mid" in running.notes:
            running.notes["mlp_out"] = y * self.multiplier if self.multiplier != 1.0 else y
        return y

    def leave(self, running: Pass, _: Tensor, x: Tensor) -> Tensor:
        """After the block. An edited `hook_resid_mid` is in the MLP's branch so far; here it enters the sum."""
        if self.model.norm == "post":
            return x  # the norm behind the last sum has shown it
        if "resid_mid" in running.notes:
            x = (running.notes["resid_mid"] + running.notes["mlp_out"]).reshape(x.shape)
        return running.tape(self.prefix + "hook_resid_post", x)


def wire(parts: ModelParts) -> list[BlockWiring]:
    """Register the hooks of a whole model; they do nothing outside `BridgeSubject.run`."""
    on_output(parts.project_in or parts.embed, _embedded)
    if parts.pos_embed is not None:
        on_output(parts.pos_embed, _embedded_position)
    blocks = [BlockWiring(parts, layer) for layer in range(len(parts.blocks))]
    if parts.ln_final is not None:
        wire_norm(parts.ln_final, "ln_final.")
    return blocks


def _embedded(running: Pass, _: Tensor, y: Tensor) -> Tensor:
    return running.tape("hook_embed", y)


def _embedded_position(running: Pass, _: Tensor, y: Tensor) -> Tensor:
    name = "hook_pos_embed"
    if not running.tape.wants(name):
        return y
    return running.tape(name, y.expand(running.tape.batch.n_examples, *y.shape[-2:]))  # may be one for the whole batch
