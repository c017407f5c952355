"""BERT-style encoders: BERT, RoBERTa, DistilBERT and MPNet, with or without a masked-language-model head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.subjects.architecture import ACTIVATIONS, Activation, Architecture
from workbench.subjects.protocol import Batch, HookPoint
from workbench.subjects.stacked import HookedNetwork
from workbench.subjects.tape import Tape
from workbench.subjects.transformer import HookedLayerNorm, Stack


@dataclass(frozen=True)
class EncoderArchitecture:
    """A post-norm stack with embeddings, a norm after them, and perhaps a head.

    Attributes
    ----------
    stack : Architecture
        Of the blocks.
    n_vocab, n_positions : int
        Rows of the two embeddings.
    n_token_types : int
        Rows of the embedding of the sentence (first or second); 0 for none.
    padding : int, optional
        Token id of padding where positions are counted from it (RoBERTa, MPNet): the first position is `padding` + 1,
        and padding itself stands at `padding`.
    n_distances : int
        Rows of the table of score biases by distance (MPNet); 0 for none.
    masked_lm : bool
        A head of linear map, `head_activation`, norm and unembedding gives logits.
    """

    stack: Architecture
    n_vocab: int
    n_positions: int
    n_token_types: int = 0
    padding: int | None = None
    n_distances: int = 0
    masked_lm: bool = False
    head_activation: Activation = "gelu"


class Encoder(HookedNetwork):
    """Embeddings, norm, blocks; gives hidden states [batch, pos, d_model], logits [batch, pos, vocab] with a head."""

    def __init__(self, arch: EncoderArchitecture) -> None:
        super().__init__()
        self.arch = arch
        d, epsilon = arch.stack.d_model, arch.stack.norm_epsilon
        self.embed = nn.Embedding(arch.n_vocab, d)
        self.pos_embed = nn.Embedding(arch.n_positions, d)
        if arch.n_token_types:
            self.token_type_embed = nn.Embedding(arch.n_token_types, d)
        if arch.n_distances:
            self.distance_bias = nn.Embedding(arch.n_distances, arch.stack.n_heads)
        self.ln_pre = HookedLayerNorm(d, eps=epsilon)
        self.stack = Stack(arch.stack)
        if arch.masked_lm:
            self.mlm_dense = nn.Linear(d, d)
            self.mlm_ln = HookedLayerNorm(d, eps=epsilon)
            self.unembed = nn.Linear(d, arch.n_vocab)

    def front_hook_points(self) -> list[HookPoint]:
        """See `HookedNetwork`."""
        names = ["hook_embed", *["hook_token_type_embed"] * bool(self.arch.n_token_types), "hook_pos_embed"]
        return [*(self.stream(name) for name in names), self.scale("ln_pre"), self.stream("ln_pre.hook_normalized")]

    def back_hook_points(self) -> list[HookPoint]:
        """See `HookedNetwork`."""
        if not self.arch.masked_lm:
            return [self.stream("hook_output")]
        names = "mlm_head.hook_pre", "mlm_head.hook_post"
        norm = self.scale("mlm_head.ln"), self.stream("mlm_head.ln.hook_normalized")
        logits = HookPoint("hook_output", ("batch", "pos", "vocab"), (None, None, self.arch.n_vocab))
        return [*(self.stream(name) for name in names), *norm, logits]

    def forward(self, batch: Batch, tape: Tape) -> Tensor:
        """Return hidden states [batch, pos, d_model], or logits [batch, pos, vocab]."""
        tokens, arch = batch.inputs, self.arch
        x = tape("hook_embed", self.embed(tokens))
        if arch.n_token_types:
            types = batch.extra.get("token_type_ids", torch.zeros_like(tokens))
            x = x + tape("hook_token_type_embed", self.token_type_embed(types))
        x = x + tape("hook_pos_embed", self.pos_embed(self.positions(tokens)))
        x = self.ln_pre.hooked(x, tape, "ln_pre.hook_scale", "ln_pre.hook_normalized")
        x = self.stack(x, batch.mask, tape, bias=self.score_bias(tokens))
        if arch.masked_lm:
            x = tape("mlm_head.hook_pre", self.mlm_dense(x))
            x = tape("mlm_head.hook_post", ACTIVATIONS[arch.head_activation](x))
            x = self.mlm_ln.hooked(x, tape, "mlm_head.ln.hook_scale", "mlm_head.ln.hook_normalized")
            x = self.unembed(x)
        return tape("hook_output", x)

    def positions(self, tokens: Tensor) -> Tensor:
        """Rows of the position embedding [batch, pos] for token ids [batch, pos]."""
        if self.arch.padding is None:
            return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        real = tokens.ne(self.arch.padding).long()
        rows: Tensor = real.cumsum(1) * real + self.arch.padding
        return rows

    def score_bias(self, tokens: Tensor) -> Tensor | None:
        """Bias [head, query, key] of the attention scores by distance; None if the architecture has none."""
        if not self.arch.n_distances:
            return None
        place = torch.arange(tokens.shape[1], device=tokens.device)
        bias: Tensor = self.distance_bias(distance_bucket(place[None, :] - place[:, None]))
        return bias.permute(2, 0, 1)

    def outer_weights(self) -> Mapping[str, Tensor | None]:
        """See `HookedNetwork`."""
        head = self.arch.masked_lm
        return {
            "W_E": self.embed.weight,
            "W_pos": self.pos_embed.weight,
            "W_token_type": self.token_type_embed.weight if self.arch.n_token_types else None,
            "ln_pre.w": self.ln_pre.weight,
            "ln_pre.b": self.ln_pre.bias,
            "distance_bias": self.distance_bias.weight if self.arch.n_distances else None,
            "mlm_head.W": self.mlm_dense.weight.T if head else None,
            "mlm_head.b": self.mlm_dense.bias if head else None,
            "mlm_head.ln.w": self.mlm_ln.weight if head else None,
            "mlm_head.ln.b": self.mlm_ln.bias if head else None,
            "W_U": self.unembed.weight.T if head else None,
            "b_U": self.unembed.bias if head else None,
        }


def distance_bucket(distance: Tensor, n_buckets: int = 32, furthest: int = 128) -> Tensor:
    """Number of the bucket that a distance (key minus query) falls into, as in T5 and MPNet.

    Half of the buckets are for keys before the query, half for those after; near distances have a bucket each, far ones
    share buckets of logarithmic width (Raffel et al., 2020, section 2.1).
    """
    half = n_buckets // 2
    exact = half // 2
    far = distance.abs()
    shared = torch.log(far.clamp(min=1).float() / exact) / math.log(furthest / exact) * (half - exact)
    shared = (exact + shared.long()).clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(far < exact, far, shared)
