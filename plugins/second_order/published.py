"""The published code's convention: actual means and all biases, shared evenly among components.

There, a layer norm takes an even share of the actual mean of its input off every component, and gives every component
an even share of its bias; so do the value and output maps with theirs. Before block l there are 1 + 2 l components
(what enters the first block, and two for each block), each MLP of them divided by its neurons; at the end there are
1 + 2 L, each attention divided by its heads, and each head by what it read. All of that is the same for every neuron of
an image: one vector, added to effects without centring. Over all components, means and biases included, both
conventions sum to the same; single effects differ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.plugins.second_order.paths import ValuePaths
from workbench.plugins.second_order.readout import architecture
from workbench.plugins.second_order.tracing import Trace
from workbench.subjects.protocol import Subject


def published_hook_points(subject: Subject, layer: int) -> list[str]:
    """List what must be captured besides: the streams whose means are shared out.

    Raises
    ------
    UserError
        For a tower to which the published code does not apply: read out at other positions than the class token, or
        with layer scale.
    """
    arch = architecture(subject)
    if (arch.n_output and arch.pooling != "class") or arch.stack.layer_scale:
        raise UserError(
            f"{subject.address}: the published convention is one for towers read out at the class token, without layer "
            "scale; take convention=linear"
        )
    later = [f"blocks.{each}.hook_resid_pre" for each in range(layer + 1, subject.n_layers)]
    return [*later, f"blocks.{subject.n_layers - 1}.hook_resid_post"]


def offset(paths: ValuePaths, traced: Trace) -> Tensor:
    """Return what the published convention adds to the effect of every neuron, [batch, output].

    Parameters
    ----------
    paths : ValuePaths
        Of the published convention: without centring.
    traced : Trace
        With the hook points of `published_hook_points`.
    """
    subject, d = paths.subject, paths.subject.d_model
    n_neurons, n_heads, n_layers = subject.d_mlp, subject.n_heads, subject.n_layers
    mixing = traced.mixing(paths)
    last_scale = traced.captured["ln_final.hook_scale"][:, 0]  # [batch, 1]
    ones = torch.ones(d, dtype=paths.dtype, device=subject.device)
    head = paths.last_norm(paths.branches[0])
    stream = traced.captured[f"blocks.{n_layers - 1}.hook_resid_post"]
    end_mean = stream[:, 0].mean(-1, keepdim=True) / last_scale  # [batch, 1]
    end_bias = paths.weight("ln_final.b") @ paths.branches[0].W
    total = torch.zeros_like(traced.output)
    for number, layer in enumerate(paths.layers):
        share = (1 + 2 * layer) * n_neurons
        here = slice(number * n_heads, (number + 1) * n_heads)
        reads, writes, weights = paths.reads[here], paths.writes[0, here], mixing[:, here]
        mean = traced.captured[f"blocks.{layer}.hook_resid_pre"].mean(-1, keepdim=True)  # [batch, pos, 1]
        W_V = paths.weight("W_V", layer)
        # what each head reads of shares that are weighed by attention and scale: the MLP's bias, the norm's mean
        into = weights.sum(-1)[..., None] * (paths.bias() / n_neurons) - (weights @ mean) * ones / share
        of_stream = torch.einsum("bhd,hde->bhe", into, reads)
        # and of shares weighed by attention alone, whose rows sum to 1: the norm's bias, the values' own
        b_V = paths.weight_or("b_V", layer, 0.0, W_V.shape[0] * W_V.shape[2]).view(W_V.shape[0], -1)
        constant = (paths.weight("ln1.b", layer) @ W_V + b_V) / share / last_scale[..., None]
        total += torch.einsum("bhe,heo->bo", of_stream + constant, writes)
        b_O = paths.weight_or("b_O", layer, 0.0, d)
        total += (b_O @ head) / share / last_scale
        last_share = (1 + 2 * n_layers) * share
        total += end_bias / last_share - end_mean * (ones @ head) / last_share
    return total
