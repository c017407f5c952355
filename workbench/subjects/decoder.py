"""Decoder language models of our own: what the zoo's text subjects are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.subjects.architecture import Architecture
from workbench.subjects.protocol import Batch, HookPoint
from workbench.subjects.stacked import HookedNetwork
from workbench.subjects.tape import Tape
from workbench.subjects.transformer import HookedLayerNorm, Stack


@dataclass(frozen=True)
class DecoderArchitecture:
    """A stack with token embedding and unembedding.

    Attributes
    ----------
    stack : Architecture
        Of the blocks; causal.
    n_vocab : int
        Number of tokens.
    n_context : int
        Longest sequence.
    learned_positions : bool
        Add a learned embedding of the position (otherwise rotary, or none).
    tied : bool
        Unembed with the embedding's own weights.
    """

    stack: Architecture
    n_vocab: int
    n_context: int
    learned_positions: bool = True
    tied: bool = False


class Decoder(HookedNetwork):
    """Token embedding, blocks, final norm, unembedding; gives next-token logits [batch, pos, vocab]."""

    def __init__(self, arch: DecoderArchitecture) -> None:
        super().__init__()
        self.arch = arch
        d = arch.stack.d_model
        self.embed = nn.Embedding(arch.n_vocab, d)
        if arch.learned_positions:
            self.pos_embed = nn.Embedding(arch.n_context, d)
        self.stack = Stack(arch.stack)
        if arch.stack.norm == "pre":
            self.ln_final = HookedLayerNorm(d, eps=arch.stack.norm_epsilon)
        if not arch.tied:
            self.unembed = nn.Linear(d, arch.n_vocab, bias=False)

    def front_hook_points(self) -> list[HookPoint]:
        """See `HookedNetwork`."""
        names = ["hook_embed"] + ["hook_pos_embed"] * self.arch.learned_positions
        return [self.stream(name) for name in names]

    def back_hook_points(self) -> list[HookPoint]:
        """See `HookedNetwork`."""
        norm = [self.scale("ln_final"), self.stream("ln_final.hook_normalized")]
        logits = HookPoint("hook_output", ("batch", "pos", "vocab"), (None, None, self.arch.n_vocab))
        return [*(norm if self.arch.stack.norm == "pre" else []), logits]

    def forward(self, batch: Batch, tape: Tape) -> Tensor:
        """Return logits [batch, pos, vocab]."""
        tokens = batch.inputs
        x = tape("hook_embed", self.embed(tokens))
        if self.arch.learned_positions:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            x = x + tape("hook_pos_embed", self.pos_embed(positions).expand_as(x))
        x = self.stack(x, batch.mask, tape)
        if self.arch.stack.norm == "pre":
            x = self.ln_final.hooked(x, tape, "ln_final.hook_scale", "ln_final.hook_normalized")
        return tape("hook_output", F.linear(x, self.unembedding()))

    def unembedding(self) -> Tensor:
        """Weights [vocab, d_model] of the last map."""
        return self.embed.weight if self.arch.tied else self.unembed.weight

    def outer_weights(self) -> Mapping[str, Tensor | None]:
        """See `HookedNetwork`."""
        normed = self.arch.stack.norm == "pre"
        return {
            "W_E": self.embed.weight,
            "W_pos": self.pos_embed.weight if self.arch.learned_positions else None,
            "ln_final.w": self.ln_final.weight if normed else None,
            "ln_final.b": self.ln_final.bias if normed else None,
            "W_U": self.unembedding().T,
        }
