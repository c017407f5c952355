"""One forward pass: the neurons' activations, and how later attention mixes tokens into the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.plugins.second_order.paths import ValuePaths, working_dtype
from workbench.plugins.second_order.readout import architecture, branches, pooled
from workbench.subjects.protocol import Batch, Subject

BUDGET_BYTES = 512 * 2**20  # activations and patterns of one batch


@dataclass(frozen=True)
class Trace:
    """What one batch of images gave.

    Attributes
    ----------
    subject : Subject
        That was run.
    output : Tensor
        [batch, output].
    captured : dict of str to Tensor
        By hook point, in float32 at least.
    """

    subject: Subject
    output: Tensor
    captured: dict[str, Tensor]

    def post(self, layer: int) -> Tensor:
        """Activations of a layer's neurons, [batch, pos, d_mlp]."""
        return self.captured[f"blocks.{layer}.mlp.hook_post"]

    def mixing(self, paths: ValuePaths) -> Tensor:
        """Return the weight of each token in each path, [batch, path, pos].

        Attention from the positions that are read out, over the scales of the two norms on the way: of the token where
        the head reads it, of the position that is read out at the end.
        """
        n_prefix = paths.arch.n_prefix
        last = self.captured["ln_final.hook_scale"]
        found = []
        for branch in paths.branches:
            for layer in paths.layers:
                pattern = self.captured[f"blocks.{layer}.attn.hook_pattern"]
                scaled = pattern / last[:, None]  # [batch, head, query, key]
                weights = pooled(scaled, branch.pool, n_prefix, dim=2)
                found.append(weights / self.captured[f"blocks.{layer}.ln1.hook_scale"].transpose(1, 2))
        return torch.cat(found, dim=1)

    def readout(self, stream: Tensor) -> Tensor:
        """Return what a part of the residual stream [batch, pos, d_model] contributes to the output directly."""
        arch = architecture(self.subject)
        gain = self.subject.weights("ln_final.w").to(stream)
        centred = (stream - stream.mean(-1, keepdim=True)) / self.captured["ln_final.hook_scale"] * gain
        total = torch.zeros_like(self.output)
        for branch in branches(self.subject, stream.dtype):
            total += pooled(centred, branch.pool, arch.n_prefix) @ branch.W
        return total


def hook_points(subject: Subject, layers: Sequence[int], more: Sequence[str] = ()) -> list[str]:
    """List what must be captured for second-order effects of some layers' neurons."""
    later = range(min(layers) + 1, subject.n_layers)
    names = [f"blocks.{layer}.mlp.hook_post" for layer in layers]
    names += [f"blocks.{layer}.attn.hook_pattern" for layer in later]
    names += [f"blocks.{layer}.ln1.hook_scale" for layer in later]
    return [*names, "ln_final.hook_scale", *more]


def trace(subject: Subject, batch: Batch, layers: Sequence[int], more: Sequence[str] = ()) -> Trace:
    """Run a batch and keep what second-order effects of some layers need.

    Parameters
    ----------
    subject : Subject
        A vision tower.
    batch : Batch
        Of images.
    layers : sequence of int
        Whose neurons will be asked for.
    more : sequence of str
        Further hook points to keep.
    """
    out = subject.run(batch, capture=hook_points(subject, layers, more))
    dtype = working_dtype(subject)
    assert out.value is not None
    captured = {name: value.to(subject.device, dtype) for name, value in out.captured.items()}
    return Trace(subject, out.value.to(subject.device, dtype), captured)


def images_per_batch(subject: Subject, layers: Sequence[int], n_positions: int | None = None) -> int:
    """Return how many images fit into a batch whose activations and patterns stay within half a gigabyte, 64 at most.

    Raises
    ------
    UserError
        If `layers` is empty.
    """
    if not layers:
        raise UserError("no layer given whose neurons' effects are asked for")
    n = n_positions or subject.n_context
    per_layer = subject.n_heads * n * n * (subject.n_layers - min(layers))
    values = per_layer + n * (subject.d_mlp * len(layers) + 2 * subject.d_mlp)
    return int(min(64, max(1, BUDGET_BYTES // (4 * values))))
