"""Where a vision tower reads its output: which positions, by what weights, through which matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.protocol import Subject
from workbench.subjects.vit import OUTPUT_ROLES, VisionArchitecture, VisionTransformer

Pool = Literal["class", "register", "patches"]


@dataclass(frozen=True)
class Branch:
    """One linear reading of the last norm's output.

    Attributes
    ----------
    pool : "class", "register" or "patches"
        The class token, the first register, or the mean over patches.
    W : Tensor
        [d_model, output] what the pooled vector is multiplied by.
    """

    pool: Pool
    W: Tensor


def architecture(subject: Subject) -> VisionArchitecture:
    """Return the architecture of a vision tower to which the formula applies.

    Raises
    ------
    UserError
        For a subject that is no vision tower of blocks with a norm before each part, whose output is no linear function
        of the last norm's output, or that has no second order (a single layer, no MLP).
    """
    network = getattr(subject, "network", None)
    if not isinstance(network, VisionTransformer):
        raise UserError(
            f"{subject.address} is no vision tower: second-order effects are those of a CLIP, ViT or DINO vision "
            "tower, for example --model hf:FOLDER#vision"
        )
    arch: VisionArchitecture = network.arch
    if arch.stack.norm != "pre" or not arch.stack.d_mlp:
        raise UserError(f"{subject.address}: its blocks must have an MLP, and a layer norm before each part")
    if arch.stack.n_layers < 2:
        raise UserError(f"{subject.address} has one layer: no later attention reads what its neurons write")
    if arch.n_output and arch.head_activation:
        raise UserError(
            f"{subject.address} ends in {arch.head_activation} of a pooler: its output is no linear function of the "
            "class token, so that effects on it do not add up; save the checkpoint without the pooler"
        )
    return arch


def branches(subject: Subject, dtype: torch.dtype) -> list[Branch]:
    """Return the linear readings whose sum is the output, but for a constant (the head's bias)."""
    arch = architecture(subject)
    if not arch.n_output:
        return [Branch("class", torch.eye(arch.stack.d_model, dtype=dtype, device=subject.device))]
    W = subject.weights(OUTPUT_ROLES[arch.output]).to(subject.device, dtype)
    if arch.pooling == "class+patches":
        of_class, of_patches = W.chunk(2)
        return [Branch("class", of_class), Branch("patches", of_patches)]
    if arch.pooling == "class+register":
        second = subject.weights("W_register_head").to(subject.device, dtype)
        return [Branch("class", W / 2), Branch("register", second / 2)]
    return [Branch("class", W)]


def pooled(values: Tensor, pool: Pool, n_prefix: int, dim: int = 1) -> Tensor:
    """Pool an axis of positions: take the class token's or the register's entry, or the mean over patches."""
    if pool == "patches":
        return values.narrow(dim, n_prefix, values.shape[dim] - n_prefix).mean(dim)
    return values.select(dim, 0 if pool == "class" else 1)
