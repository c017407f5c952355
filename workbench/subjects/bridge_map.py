"""Which module of a Hugging Face language model plays which part: TransformerLens's TransformerBridge adapters say it.

The modules themselves are left as they are and in their places. The Bridge's own forward pass is not used, because what
it shows is not always what the checkpoint's library computes: it puts attention together again with a softmax in
float32 (a float64 model then agrees with its library to 1e-8 only), an edit of ``hook_resid_mid`` reaches the MLP but
not the residual stream beside it, and fused weights are split into copies that an edit of the model does not reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from workbench.errors import UserError

FusedLayout = Literal["concatenated", "by_head"]

# How a fused projection orders its output: all queries, all keys, all values; or the three of each head in turn.
FUSED_LAYOUTS: Mapping[str, FusedLayout] = {
    "gpt2": "concatenated",
    "gpt_bigcode": "by_head",
    "gpt_neox": "by_head",
    "phi3": "concatenated",
}


@dataclass(frozen=True)
class BlockParts:
    """The modules of one block; None where the architecture has none.

    Attributes
    ----------
    block, attn, o : Module
        The block, its attention, the attention's output projection.
    q, k, v, qkv : Module, optional
        The projections, separate or fused.
    ln1, ln1_post : Module, optional
        Norms before and after the attention.
    ln2, ln2_post : Module, optional
        Norms before and after the MLP.
    mlp, out : Module, optional
        The MLP (None where its projections sit in the block itself), its output projection.
    inner, gate, gate_and_inner : Module, optional
        The MLP's input projections, separate or fused.
    q_norm, k_norm : Module, optional
        Norms of queries and keys.
    """

    block: nn.Module
    attn: nn.Module
    o: nn.Module
    q: nn.Module | None
    k: nn.Module | None
    v: nn.Module | None
    qkv: nn.Module | None
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    ln1: nn.Module | None
    ln1_post: nn.Module | None
    ln2: nn.Module | None
    ln2_post: nn.Module | None
    mlp: nn.Module | None
    inner: nn.Module | None
    gate: nn.Module | None
    gate_and_inner: nn.Module | None
    out: nn.Module | None


@dataclass(frozen=True)
class ModelParts:
    """The modules of a language model.

    Attributes
    ----------
    embed, pos_embed, ln_final, unembed : Module
        `pos_embed` and `ln_final` are None where the architecture has none.
    project_in : Module, optional
        From an embedding narrower than the residual stream (OPT-350m).
    blocks : tuple of BlockParts
        In order.
    d_model, n_heads, d_head, n_key_value_heads : int
        Sizes.
    norm : "pre" or "post"
        Norms before attention and MLP (also where others come behind them), or after each sum (OPT-350m).
    parallel : bool
        Attention and MLP both read what enters the block (GPT-J, GPT-NeoX, Phi).
    rotary : bool
        Queries and keys are rotated by position.
    fused : "concatenated", "by_head" or None
        Layout of the fused projection.
    """

    embed: nn.Module
    project_in: nn.Module | None
    pos_embed: nn.Module | None
    ln_final: nn.Module | None
    unembed: nn.Module
    blocks: tuple[BlockParts, ...]
    d_model: int
    n_heads: int
    d_head: int
    n_key_value_heads: int
    norm: Literal["pre", "post"]
    parallel: bool
    rotary: bool
    fused: FusedLayout | None


def supported_architectures() -> list[str]:
    """Names of the causal language model classes that the Bridge has an adapter for, sorted."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return sorted(name for name in SUPPORTED_ARCHITECTURES if name.endswith(("ForCausalLM", "LMHeadModel")))


def map_parts(model: Any, address: str) -> ModelParts:
    """Find the parts of a Hugging Face causal language model.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Left unchanged.
    address : str
        For messages.

    Raises
    ------
    UserError
        If the Bridge has no adapter for the architecture, or it is not one whose parts can be told apart.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.generalized_components import ParallelBlockBridge
    from transformer_lens.model_bridge.sources import build_bridge_config_from_hf

    architecture = type(model).__name__
    if architecture not in supported_architectures():
        raise UserError(
            f"{address} is a {architecture}, which the TransformerBridge does not know; "
            f"it knows {', '.join(supported_architectures())}"
        )
    if getattr(model.config, "clip_qkv", None) is not None:
        raise UserError(f"{address} clips queries, keys and values (clip_qkv), which its hook points would not show")
    config = build_bridge_config_from_hf(model.config, architecture, address, model.dtype)
    mapping = ArchitectureAdapterFactory.select_architecture_adapter(config).component_mapping
    template = mapping.get("blocks")
    if template is None or "embed" not in mapping or "unembed" not in mapping:
        raise UserError(f"{address} is a {architecture}, which is not a plain stack of transformer blocks")
    blocks = model.get_submodule(template.name)
    try:
        parts = tuple(_block_parts(block, template) for block in blocks)
    except AttributeError as error:
        raise UserError(
            f"{address} is a {architecture}, whose blocks are not all of attention and MLP: {error}"
        ) from error
    first = parts[0]
    n_heads = int(config.n_heads)
    d_head = _n_inputs(first.o) // n_heads
    layout, n_kv = None, n_heads
    if first.k is not None:
        n_kv = _n_outputs(first.k) // d_head
    elif first.qkv is not None:
        layout = _fused_layout(model.config, f"{address} is a {architecture}")
        n_kv = n_heads if layout == "by_head" else (_n_outputs(first.qkv) // d_head - n_heads) // 2

    def outer(name: str) -> nn.Module | None:
        return _get(model, mapping[name].name) if name in mapping else None

    return ModelParts(
        embed=model.get_submodule(mapping["embed"].name),
        project_in=outer("project_in"),
        pos_embed=outer("pos_embed"),
        ln_final=outer("ln_final"),
        unembed=model.get_submodule(mapping["unembed"].name),
        blocks=parts,
        d_model=_n_outputs(first.o),
        n_heads=n_heads,
        d_head=d_head,
        n_key_value_heads=n_kv,
        norm="pre" if getattr(model.config, "do_layer_norm_before", True) else "post",
        parallel=isinstance(template, ParallelBlockBridge),
        rotary=config.positional_embedding_type == "rotary",
        fused=layout,
    )


def _fused_layout(config: Any, what: str) -> FusedLayout:
    if getattr(config, "multi_query", False):  # one key and value head for all: there is no other order
        return "concatenated"
    layout = FUSED_LAYOUTS.get(config.model_type)
    if layout is None:
        raise UserError(f"{what}, whose fused query-key-value projection has a layout that is not known here")
    return layout


def _block_parts(block: nn.Module, template: Any) -> BlockParts:
    """Resolve the adapter's names within one block."""

    def find(*path: str) -> nn.Module | None:
        """Return the module of a component such as ("attn", "q"); None if this block has none."""
        component, names = template, []
        for step in path:
            component = component.submodules.get(step)
            if component is None:
                return None
            names += [component.name] if component.name else []
        return _get(block, ".".join(names)) if component.name else None

    # Where the adapter hooks what a part adds to the stream: after the part itself, or after a norm behind it.
    aliases = template.hook_aliases
    ln1, ln2 = find("ln1"), find("ln2")
    ln1_post, ln2_post = find("ln1_post"), find("ln2_post")
    if str(aliases.get("hook_attn_out")).startswith("ln1."):
        ln1, ln1_post = None, ln1
    if str(aliases.get("hook_mlp_out")).startswith("ln2."):
        ln2, ln2_post = None, ln2
    attn, o, mlp = find("attn"), find("attn", "o"), find("mlp")
    if attn is None or o is None:
        raise AttributeError(f"{type(block).__name__} has no attention with an output projection")
    gate, inner = find("mlp", "gate"), find("mlp", "in")
    return BlockParts(
        block=block,
        attn=attn,
        o=o,
        q=find("attn", "q"),
        k=find("attn", "k"),
        v=find("attn", "v"),
        qkv=find("attn", "qkv"),
        q_norm=find("attn", "q_norm"),
        k_norm=find("attn", "k_norm"),
        ln1=ln1,
        ln1_post=ln1_post,
        ln2=ln2,
        ln2_post=ln2_post,
        mlp=mlp,
        inner=inner,
        gate=gate,
        gate_and_inner=None if inner is not None or mlp is None else _get(mlp, "gate_up_proj"),
        out=find("mlp", "out"),
    )


def _get(module: nn.Module, path: str) -> nn.Module | None:
    try:
        found = module.get_submodule(path)
    except AttributeError:  # an optional part, or one that the Bridge makes up (halves of a fused projection)
        return None
    return found


def _n_inputs(linear: Any) -> int:
    """Width that a linear map reads; Hugging Face's Conv1D keeps its weight the other way round."""
    return int(linear.weight.shape[0] if is_conv1d(linear) else linear.weight.shape[1])


def _n_outputs(linear: Any) -> int:
    return int(linear.weight.shape[1] if is_conv1d(linear) else linear.weight.shape[0])


def is_conv1d(linear: nn.Module) -> bool:
    """True for GPT-2's linear maps, whose weight is [in, out]."""
    return type(linear).__name__ == "Conv1D"
