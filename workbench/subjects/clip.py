"""CLIP's text tower, and how CLIP checkpoints become a text or a vision tower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.subjects.architecture import Architecture, activation_named
from workbench.subjects.protocol import Batch, HookPoint
from workbench.subjects.stacked import HookedNetwork
from workbench.subjects.tape import Tape
from workbench.subjects.towers_convert import Family, State, block_names
from workbench.subjects.transformer import HookedLayerNorm, Stack
from workbench.subjects.vit import VisionArchitecture, VisionTransformer, pair

OLD_END_OF_TEXT = 2  # what configurations said before the library knew the real token


@dataclass(frozen=True)
class TextTowerArchitecture:
    """A causal pre-norm stack that gives one embedding per text.

    Attributes
    ----------
    stack : Architecture
        Of the blocks.
    n_vocab, n_positions : int
        Rows of the two embeddings.
    end_of_text : int
        The token whose first occurrence is pooled; 2 stands for the token with the highest id, as in old checkpoints.
    n_embedding : int, optional
        Size of the projection; None for a tower without one.
    """

    stack: Architecture
    n_vocab: int
    n_positions: int
    end_of_text: int
    n_embedding: int | None = None


class TextTower(HookedNetwork):
    """CLIP's text tower; gives the embedding [batch, embedding] of the end-of-text token."""

    def __init__(self, arch: TextTowerArchitecture) -> None:
        super().__init__()
        self.arch = arch
        d = arch.stack.d_model
        self.embed = nn.Embedding(arch.n_vocab, d)
        self.pos_embed = nn.Embedding(arch.n_positions, d)
        self.stack = Stack(arch.stack)
        self.ln_final = HookedLayerNorm(d, eps=arch.stack.norm_epsilon)
        if arch.n_embedding:
            self.proj = nn.Linear(d, arch.n_embedding, bias=False)

    def front_hook_points(self) -> list[HookPoint]:
        """See `HookedNetwork`."""
        return [self.stream("hook_embed"), self.stream("hook_pos_embed")]

    def back_hook_points(self) -> list[HookPoint]:
        """See `HookedNetwork`."""
        d, size = self.arch.stack.d_model, self.arch.n_embedding
        return [
            self.scale("ln_final"),
            self.stream("ln_final.hook_normalized"),
            *[HookPoint("hook_pooled", ("batch", "d_model"), (None, d))] * bool(size),
            HookPoint("hook_output", ("batch", "embedding"), (None, size or d)),
        ]

    def forward(self, batch: Batch, tape: Tape) -> Tensor:
        """Return the embedding [batch, embedding]."""
        tokens = batch.inputs
        x = tape("hook_embed", self.embed(tokens))
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = x + tape("hook_pos_embed", self.pos_embed(places).expand_as(x))
        x = self.stack(x, batch.mask, tape)
        x = self.ln_final.hooked(x, tape, "ln_final.hook_scale", "ln_final.hook_normalized")
        x = x[torch.arange(len(x), device=x.device), self.end_of_text(batch).to(x.device)]
        if self.arch.n_embedding:
            x = self.proj(tape("hook_pooled", x))
        return tape("hook_output", x)

    def end_of_text(self, batch: Batch) -> Tensor:
        """Position [batch] that is pooled: the first end-of-text token, position 0 where there is none."""
        end = self.arch.end_of_text
        if end == OLD_END_OF_TEXT:
            return batch.inputs.masked_fill(~batch.mask, -1).argmax(1)
        return (batch.inputs.eq(end) & batch.mask).int().argmax(1)

    def outer_weights(self) -> Mapping[str, Tensor | None]:
        """See `HookedNetwork`."""
        return {
            "W_E": self.embed.weight,
            "W_pos": self.pos_embed.weight,
            "ln_final.w": self.ln_final.weight,
            "ln_final.b": self.ln_final.bias,
            "W_proj": self.proj.weight.T if self.arch.n_embedding else None,
        }


BLOCK = block_names(
    "encoder.layers.#",
    {
        "layer_norm1": "ln1",
        "self_attn.q_proj": "attn.q",
        "self_attn.k_proj": "attn.k",
        "self_attn.v_proj": "attn.v",
        "self_attn.out_proj": "attn.o",
        "layer_norm2": "ln2",
        "mlp.fc1": "mlp.inner",
        "mlp.fc2": "mlp.outer",
    },
)
TEXT_NAMES = {
    **BLOCK,
    "embeddings.token_embedding": "embed",
    "embeddings.position_embedding": "pos_embed",
    "embeddings.position_ids": "",
    "final_layer_norm": "ln_final",
    "text_projection": "proj",
    "logit_scale": "",
}
VISION_NAMES = {
    **BLOCK,
    "embeddings.class_embedding": "front.class_token",
    "embeddings.patch_embedding": "front.patch_embed",
    "embeddings.position_embedding.weight": "front.pos_embed",
    "embeddings.position_ids": "",
    "pre_layrnorm": "ln_pre",  # the library's own spelling
    "post_layernorm": "ln_final",
    "visual_projection": "head",
    "logit_scale": "",
}


def pre_norm(config: Any, model: str, causal: bool) -> Architecture:
    """Return the stack that one tower's configuration describes."""
    return Architecture(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        d_head=config.hidden_size // config.num_attention_heads,
        d_mlp=config.intermediate_size,
        norm_epsilon=config.layer_norm_eps,
        activation=activation_named(config.hidden_act, model),
        causal=causal,
    )


def build_text(config: Any, state: State, model: str) -> TextTower:
    """Make the text tower; `config` is the text tower's, or that of both."""
    config = getattr(config, "text_config", config)
    return TextTower(
        TextTowerArchitecture(
            pre_norm(config, model, causal=True),
            config.vocab_size,
            config.max_position_embeddings,
            config.eos_token_id,
            n_embedding=len(state["proj.weight"]) if "proj.weight" in state else None,
        )
    )


def build_vision(config: Any, state: State, model: str) -> VisionTransformer:
    """Make the vision tower; `config` is the vision tower's, or that of both."""
    config = getattr(config, "vision_config", config)
    return VisionTransformer(
        VisionArchitecture(
            pre_norm(config, model, causal=False),
            image_size=pair(config.image_size),
            patch_size=pair(config.patch_size),
            n_channels=config.num_channels,
            patch_bias=False,
            norm_before=True,
            output="embedding",
            n_output=len(state["head.weight"]) if "head.weight" in state else None,
            head_bias=False,
        )
    )


TEXT, VISION = "text_model.", "vision_model."
CLIP_FAMILIES: dict[str, Family | dict[str, Family]] = {
    "clip": {
        "text": Family(
            "text", "CLIPModel", TEXT_NAMES, build_text, prefixes=(TEXT,), others=(VISION, "visual_projection.")
        ),
        "vision": Family(
            "vision", "CLIPModel", VISION_NAMES, build_vision, prefixes=(VISION,), others=(TEXT, "text_projection.")
        ),
    },
    "clip_text_model": Family(
        "text", "CLIPTextModel", TEXT_NAMES, build_text, heads=("CLIPTextModelWithProjection",), prefixes=(TEXT,)
    ),
    "clip_vision_model": Family(
        "vision",
        "CLIPVisionModel",
        VISION_NAMES,
        build_vision,
        heads=("CLIPVisionModelWithProjection",),
        prefixes=(VISION,),
    ),
}
