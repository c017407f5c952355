"""From a neuron's output weight to the output, through the value path of every later head: fixed, once per model."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.plugins.second_order.readout import Branch, architecture, branches
from workbench.subjects.protocol import Subject

Convention = Literal["linear", "published"]


def working_dtype(subject: Subject) -> torch.dtype:
    """Return the subject's dtype, or float32 where that is narrower."""
    return torch.promote_types(subject.dtype, torch.float32)


def weight(subject: Subject, role: str, layer: int | None = None) -> Tensor:
    """Return a weight of a subject, on its device, in float32 at least; each head has its own keys and values."""
    return subject.weights(role, layer, expand=True).to(subject.device, working_dtype(subject))


def weight_or(subject: Subject, role: str, layer: int | None, value: float, n: int) -> Tensor:
    """Return a vector among a subject's weights, or one of `n` equal values where it does not have it."""
    try:
        return weight(subject, role, layer)
    except UserError:
        return torch.full((n,), value, dtype=working_dtype(subject), device=subject.device)


def neuron_weights(subject: Subject, layer: int, block: slice = slice(None)) -> Tensor:
    """Return what a layer's neurons write to the residual stream at an activation of 1, [neuron, d_model]."""
    return weight(subject, "W_out", layer)[block] * weight_or(subject, "ls2", layer, 1.0, subject.d_model)


class ValuePaths:
    """The value paths from behind one layer to the output.

    A *path* is a branch of the readout, a later layer and one of its heads. What a vector of the residual stream
    contributes to the output through a path is linear in it once attention patterns and the scales of layer norms are
    held: `reads` (norm and value map) and `writes` (output map, last norm and head) are its two factors, and neither
    depends on the image. What does is the mixing over tokens (`Trace.mixing`).

    Parameters
    ----------
    subject : Subject
        A vision tower.
    layer : int
        Whose neurons write; heads of the layers after it read.
    convention : "linear" or "published"
        ``linear``: each component's own channel mean is taken off where a norm centres. ``published``: it is not, as in
        the paper's code, which takes an even share of the actual mean off every component (see `published`).

    Attributes
    ----------
    layers : range
        Layers that read.
    reads : Tensor
        [later layer * head, d_model, d_head].
    writes : Tensor
        [branch, later layer * head, d_head, output].

    Raises
    ------
    UserError
        For a layer that no later attention reads.
    """

    def __init__(self, subject: Subject, layer: int, convention: Convention = "linear") -> None:
        if convention not in get_args(Convention):
            raise UserError(f"convention={convention!r}: must be {' or '.join(get_args(Convention))}")
        arch = architecture(subject)
        if not 0 <= layer < subject.n_layers - 1:
            raise UserError(
                f"layer {layer}: the layers of {subject.address} that later attention reads are 0 to "
                f"{subject.n_layers - 2}"
            )
        self.subject, self.arch, self.layer, self.convention = subject, arch, layer, convention
        self.layers = range(layer + 1, subject.n_layers)
        self.dtype = working_dtype(subject)
        self.branches = branches(subject, self.dtype)
        self.reads = torch.cat([self._reads(each) for each in self.layers])
        self._reads_of_all = self.reads.permute(1, 0, 2).flatten(1)  # [d_model, path * d_head]: one product, not many
        self.writes = torch.stack([torch.cat([self._writes(each, b) for each in self.layers]) for b in self.branches])

    @property
    def n_paths(self) -> int:
        """Number of paths: branches x later layers x heads."""
        return len(self.branches) * len(self.reads)

    @property
    def n_output(self) -> int:
        """Size of the output."""
        return int(self.writes.shape[-1])

    def weight(self, role: str, layer: int | None = None) -> Tensor:
        """Return a weight of the subject, on its device, in the dtype of the computation."""
        return weight(self.subject, role, layer)

    def weight_or(self, role: str, layer: int | None, value: float, n: int) -> Tensor:
        """Return a vector among the weights, or one of `n` equal values where the subject does not have it."""
        return weight_or(self.subject, role, layer, value, n)

    def centred(self, matrix: Tensor) -> Tensor:
        """Prepare a matrix [..., d_model, n] that is applied behind a norm: it centres what comes in."""
        return matrix - matrix.mean(-2, keepdim=True) if self.convention == "linear" else matrix

    def last_norm(self, branch: Branch) -> Tensor:
        """Return the last norm's gain and the branch's matrix as one [d_model, output]."""
        return self.centred(self.weight("ln_final.w")[:, None] * branch.W)

    def output_maps(self, layer: int) -> Tensor:
        """Return what each head of a layer writes to the residual stream, [head, d_head, d_model]."""
        return self.weight("W_O", layer) * self.weight_or("ls1", layer, 1.0, self.subject.d_model)

    def _reads(self, layer: int) -> Tensor:
        return self.centred(self.weight("ln1.w", layer)[:, None] * self.weight("W_V", layer))

    def _writes(self, layer: int, branch: Branch) -> Tensor:
        return self.output_maps(layer) @ self.last_norm(branch)

    def neurons(self, block: slice = slice(None)) -> Tensor:
        """Return what neurons of the layer write to the residual stream at an activation of 1, [neuron, d_model]."""
        return neuron_weights(self.subject, self.layer, block)

    def bias(self) -> Tensor:
        """Return what the MLP writes besides, [d_model]: the share of the layer that belongs to no neuron."""
        d = self.subject.d_model
        return self.weight_or("b_out", self.layer, 0.0, d) * self.weight_or("ls2", self.layer, 1.0, d)

    def read(self, vectors: Tensor) -> Tensor:
        """Return what each head reads of vectors [n, d_model], [n, later layer * head, d_head]."""
        return (vectors @ self._reads_of_all).view(len(vectors), len(self.reads), -1)

    def carry(self, vectors: Tensor) -> Tensor:
        """Return what vectors [n, d_model] contribute through each path, [path, n, output], at a mixing weight of 1."""
        values = self.read(vectors).transpose(0, 1)
        return torch.cat([torch.bmm(values, writes) for writes in self.writes])

    def carry_weighed(self, weights: Tensor, vectors: Tensor) -> Tensor:
        """Return what vectors contribute through all paths together, in each image by weights of its own.

        One product per image over paths and head dimensions: the contributions of single paths are never written down.

        Parameters
        ----------
        weights : Tensor
            [batch, path, n].
        vectors : Tensor
            [n, d_model].

        Returns
        -------
        Tensor [batch, n, output]
        """
        read = self.read(vectors)
        out = read.new_zeros(len(weights), len(vectors), self.n_output)
        for image, of_image in enumerate(weights.view(len(weights), len(self.branches), len(self.reads), -1)):
            for weight, writes in zip(of_image, self.writes.flatten(1, 2), strict=True):
                out[image].addmm_((read * weight.T[:, :, None]).flatten(1), writes)
        return out

    def carry_mixed(self, mixed: Tensor) -> Tensor:
        """Return the contribution of vectors that were mixed over tokens path by path.

        mixed [batch, path, d_model] -> [batch, output].
        """
        per_branch = mixed.view(len(mixed), len(self.branches), len(self.reads), -1)
        values = torch.einsum("brpd,pde->brpe", per_branch, self.reads)
        return torch.einsum("brpe,rpeo->bo", values, self.writes)
