"""How DINOv2 (with and without registers) and DINOv3 checkpoints become a `VisionTransformer`.

DINO's first version is a ViT checkpoint.
"""

from __future__ import annotations

from typing import Any

from workbench.subjects.architecture import Architecture, activation_named
from workbench.subjects.towers_convert import Family, State, block_names
from workbench.subjects.vit import VisionArchitecture, VisionTransformer, pair

BLOCK: dict[str, str] = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.o",
    "layer_scale1.lambda1": "ls1",
    "layer_scale2.lambda1": "ls2",
}
OLD_ATTENTION = {  # up to transformers 5.0
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.o",
}
GATED = {"mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.inner", "mlp.down_proj": "mlp.outer"}
V2_MLP = {**GATED, "mlp.fc1": "mlp.inner", "mlp.fc2": "mlp.outer", "mlp.weights_out": "mlp.outer"}
EMBEDDINGS = {
    "embeddings.cls_token": "front.class_token",
    "embeddings.register_tokens": "front.registers",
    "embeddings.position_embeddings": "front.pos_embed",
    "embeddings.mask_token": "",  # stands in for hidden patches during pretraining only
}
V2_NAMES: dict[str, str | tuple[str, str]] = {
    **EMBEDDINGS,
    "embeddings.patch_embeddings.projection": "front.patch_embed",
    **block_names("encoder.layer.#", {**BLOCK, **OLD_ATTENTION, **V2_MLP}),
    "encoder.layer.#.mlp.weights_in": ("stack.blocks.#.mlp.gate", "stack.blocks.#.mlp.inner"),
    "layernorm": "ln_final",
    "classifier": "head",
}
V3_NAMES = {
    **EMBEDDINGS,
    "embeddings.patch_embeddings": "front.patch_embed",
    **block_names("layer.#", {**BLOCK, **GATED}),
    "norm": "ln_final",
    "rope_embeddings.inv_freq": "",
}


def build_dinov2(config: Any, state: State, model: str) -> VisionTransformer:
    """Make DINOv2's network: layer scale, perhaps registers, perhaps SwiGLU, perhaps a classifier."""
    d, gated = config.hidden_size, config.use_swiglu_ffn
    head = state.get("head.weight")
    registers = getattr(config, "num_register_tokens", 0)
    stack = Architecture(
        n_layers=config.num_hidden_layers,
        d_model=d,
        n_heads=config.num_attention_heads,
        d_head=getattr(config, "head_dim", None) or d // config.num_attention_heads,
        d_mlp=len(state["stack.blocks.0.mlp.inner.weight"]) if config.num_hidden_layers else 0,
        norm_epsilon=config.layer_norm_eps,
        activation="silu" if gated else activation_named(config.hidden_act, model),
        gated=gated,
        layer_scale=True,
        query_bias=config.qkv_bias,
        key_bias=config.qkv_bias,
        value_bias=config.qkv_bias,
    )
    return VisionTransformer(
        VisionArchitecture(
            stack,
            image_size=pair(config.image_size),
            patch_size=pair(config.patch_size),
            n_channels=config.num_channels,
            n_registers=registers,
            interpolation="antialias" if config.model_type == "dinov2_with_registers" else "float32",
            pooling="class" if head is None else "class+patches",
            output="pooled" if head is None else "class",
            n_output=None if head is None else len(head),
        )
    )


def build_dinov3(config: Any, state: State, model: str) -> VisionTransformer:
    """Make DINOv3's network: registers, layer scale, and positions by rotation of the patches alone."""
    stack = Architecture(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        d_head=config.hidden_size // config.num_attention_heads,
        d_mlp=config.intermediate_size,
        norm_epsilon=config.layer_norm_eps,
        activation=activation_named(config.hidden_act, model),
        gated=config.use_gated_mlp,
        layer_scale=True,
        rotary_base=config.rope_theta,
        query_bias=config.query_bias,
        key_bias=config.key_bias,
        value_bias=config.value_bias,
        out_bias=config.proj_bias,
        mlp_bias=config.mlp_bias,
    )
    return VisionTransformer(
        VisionArchitecture(
            stack,
            image_size=pair(config.image_size),
            patch_size=pair(config.patch_size),
            n_channels=config.num_channels,
            n_registers=config.num_register_tokens,
            learned_positions=False,
        )
    )


V2_HEADS = "Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification"
DINO_FAMILIES = {
    "dinov2": Family("vision", "Dinov2Model", V2_NAMES, build_dinov2, heads=V2_HEADS[:1], prefixes=("dinov2.",)),
    "dinov2_with_registers": Family(
        "vision",
        "Dinov2WithRegistersModel",
        V2_NAMES,
        build_dinov2,
        heads=V2_HEADS[1:],
        prefixes=("dinov2_with_registers.",),
    ),
    "dinov3_vit": Family("vision", "DINOv3ViTModel", V3_NAMES, build_dinov3, prefixes=("model.",)),
}
