"""Weights of Hugging Face language models by role, as views: editing one edits the model."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from workbench.subjects.bridge_map import BlockParts, ModelParts, is_conv1d

NORMS = ("ln1", "ln1_post", "ln2", "ln2_post", "q_norm", "k_norm")
BLOCK_ROLES = (
    "W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O", "W_in", "W_gate", "b_in", "b_gate", "W_out", "b_out",
    *(f"{norm}.{which}" for norm in NORMS for which in "wb"),
)  # fmt: skip


def matrix(linear: Any) -> Tensor:
    """Weight of a linear map as [in, out]."""
    weight: Tensor = linear.weight
    return weight if is_conv1d(linear) else weight.T  # a transposed view can still be split along an axis


def projection(model: ModelParts, parts: BlockParts, which: str) -> tuple[Tensor, Tensor | None]:
    """Weight [head, d_model, d_head] and bias [head, d_head] of queries, keys or values ("q", "k", "v")."""
    n_heads = {"q": model.n_heads, "k": model.n_key_value_heads, "v": model.n_key_value_heads}
    linear: Any = getattr(parts, which)
    if linear is None:
        linear = parts.qkv
    weight, bias = matrix(linear), _bias(linear)
    split = [weight] if bias is None else [weight, bias]
    if parts.qkv is None:
        split = [whole.view(*whole.shape[:-1], n_heads[which], -1) for whole in split]
    elif model.fused == "by_head":
        split = [whole.view(*whole.shape[:-1], model.n_heads, 3, -1)[..., "qkv".index(which), :] for whole in split]
    else:
        start = {"q": 0, "k": n_heads["q"], "v": n_heads["q"] + n_heads["k"]}[which]
        heads = slice(start, start + n_heads[which])
        split = [whole.view(*whole.shape[:-1], sum(n_heads.values()), -1)[..., heads, :] for whole in split]
    return split[0].transpose(0, 1), None if bias is None else split[1]


def block_weight(model: ModelParts, parts: BlockParts, role: str) -> Tensor | None:
    """Return one of a block's weights by role (see `Subject.weights`), a view; None if absent."""
    kind, _, letter = role.partition("_")
    if letter in {"Q", "K", "V"}:
        weight, bias = projection(model, parts, letter.lower())
        return weight if kind == "W" else bias
    if role == "W_O":
        whole = matrix(parts.o)
        return whole.view(model.n_heads, -1, whole.shape[1])
    if role == "b_O":
        return _bias(parts.o)
    name, dot, which = role.partition(".")
    if dot:
        return _of_norm(getattr(parts, name), which)
    if parts.out is None:
        return None
    if role in {"W_out", "b_out"}:
        return matrix(parts.out) if kind == "W" else _bias(parts.out)
    if parts.gate_and_inner is not None:
        half = ("gate", "in").index(letter)
        both = matrix(parts.gate_and_inner) if kind == "W" else _bias(parts.gate_and_inner)
        return None if both is None else both.chunk(2, dim=-1)[half]
    linear = parts.gate if letter == "gate" else parts.inner
    if linear is None:
        return None
    return matrix(linear) if kind == "W" else _bias(linear)


def outer_weights(model: ModelParts) -> dict[str, Tensor | None]:
    """Weights of the whole model by role; None where absent. A tied `W_U` is `W_E` turned round, the same numbers."""
    positions: Tensor | None = getattr(model.pos_embed, "weight", None)
    if positions is not None:
        positions = positions[getattr(model.pos_embed, "offset", 0) :]  # OPT starts counting at 2
    return {
        "W_E": getattr(model.embed, "weight", None),
        "W_pos": positions,
        "ln_final.w": _of_norm(model.ln_final, "w"),
        "ln_final.b": _of_norm(model.ln_final, "b"),
        "W_U": matrix(model.unembed),
        "b_U": _bias(model.unembed),
    }


def _of_norm(norm: nn.Module | None, which: str) -> Tensor | None:
    found: Tensor | None = getattr(norm, {"w": "weight", "b": "bias"}[which], None)
    return found


def _bias(linear: nn.Module) -> Tensor | None:
    found: Tensor | None = getattr(linear, "bias", None)
    return found
