"""How ViT and DeiT checkpoints become a `VisionTransformer`."""

from __future__ import annotations

from typing import Any

from workbench.subjects.architecture import Architecture, activation_named
from workbench.subjects.towers_convert import Family, State, block_names
from workbench.subjects.vit import VisionArchitecture, VisionTransformer, pair

BLOCK = {
    "layernorm_before": "ln1",
    "layernorm_after": "ln2",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.o",
    "mlp.fc1": "mlp.inner",
    "mlp.fc2": "mlp.outer",
}
OLD_BLOCK = {  # up to transformers 5.0
    "layernorm_before": "ln1",
    "layernorm_after": "ln2",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.o",
    "intermediate.dense": "mlp.inner",
    "output.dense": "mlp.outer",
}
EMBEDDINGS = {
    "embeddings.cls_token": "front.class_token",
    "embeddings.position_embeddings": "front.pos_embed",
    "embeddings.patch_embeddings.projection": "front.patch_embed",
    "embeddings.mask_token": "",  # stands in for hidden patches during pretraining only
}
VIT_NAMES = {
    **EMBEDDINGS,
    **block_names("layers.#", BLOCK),
    **block_names("encoder.layer.#", OLD_BLOCK),
    "layernorm": "ln_final",
    "pooler.dense": "head",
    "classifier": "head",
}
DEIT_NAMES = {
    **VIT_NAMES,
    "embeddings.distillation_token": "front.registers",
    "cls_classifier": "head",
    "distillation_classifier": "register_head",
}


def pre_norm(config: Any, model: str) -> Architecture:
    """Return the stack that a ViT or DeiT configuration describes."""
    return Architecture(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        d_mlp=config.intermediate_size,
        norm_epsilon=config.layer_norm_eps,
        activation=activation_named(config.hidden_act, model),
        query_bias=config.qkv_bias,
        key_bias=config.qkv_bias,
        value_bias=config.qkv_bias,
    )


def build_vit(config: Any, state: State, model: str) -> VisionTransformer:
    """Make ViT's network: with a classifier, with a pooler, or with neither."""
    return VisionTransformer(describe(config, state, model, n_registers=0))


def build_deit(config: Any, state: State, model: str) -> VisionTransformer:
    """Make DeiT's network: ViT with a distillation token, which stands as a register with a position of its own."""
    return VisionTransformer(describe(config, state, model, n_registers=1))


def describe(config: Any, state: State, model: str, n_registers: int) -> VisionArchitecture:
    """Return the architecture that configuration and tensors describe."""
    head = state.get("head.weight")
    classifies = any(name.endswith("ForImageClassification") for name in config.architectures or ()) or (
        "register_head.weight" in state
    )
    return VisionArchitecture(
        pre_norm(config, model),
        image_size=pair(config.image_size),
        patch_size=pair(config.patch_size),
        n_channels=config.num_channels,
        n_registers=n_registers,
        placed_registers=n_registers > 0,
        pooling="class+register" if "register_head.weight" in state else "class",
        output="class" if classifies else "pooled",
        n_output=None if head is None else len(head),
        head_activation=None if classifies or head is None else activation_named(config.pooler_act, model),
    )


VIT_FAMILIES = {
    "vit": Family("vision", "ViTModel", VIT_NAMES, build_vit, heads=("ViTForImageClassification",), prefixes=("vit.",)),
    "deit": Family(
        "vision",
        "DeiTModel",
        DEIT_NAMES,
        build_deit,
        heads=("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
        prefixes=("deit.",),
    ),
}
