"""The shape of a stack of transformer blocks, and the hook points that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.protocol import HookPoint

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh", "sigmoid"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}

HUGGING_FACE_ACTIVATIONS: dict[str, Activation] = {
    **{name: name for name in get_args(Activation) if name != "gelu_tanh"},
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "swish": "silu",
}


def activation_named(name: str, model: str) -> Activation:
    """Return our word for an activation function that a Hugging Face configuration names.

    Parameters
    ----------
    name : str
        For example ``gelu_new`` or ``quick_gelu``.
    model : str
        Whose configuration it is, for the message.

    Raises
    ------
    UserError
        For a function that the stack does not compute; the message lists those it does.
    """
    if name not in HUGGING_FACE_ACTIVATIONS:
        known = ", ".join(sorted(HUGGING_FACE_ACTIVATIONS))
        raise UserError(f"{model} has the activation function {name!r}; supported: {known}")
    return HUGGING_FACE_ACTIVATIONS[name]


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
    query_bias, key_bias, value_bias, out_bias, mlp_bias : bool
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
    query_bias: bool = True
    key_bias: bool = True
    value_bias: bool = True
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
        if post and m:
            points += [at("ln2.hook_scale", (*bp, "scale"), None, None, 1), resid("hook_normalized_resid_post")]
        return points
