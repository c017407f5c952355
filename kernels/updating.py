"""One step of Adam on a matrix from the factors of its gradient: compiled where there is a kernel, else in PyTorch."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.kernels import topk
from workbench.kernels.cpu import interface
from workbench.kernels.cpu.choosing import chosen
from workbench.kernels.cpu.library import Library


@dataclass(frozen=True)
class Factor:
    """A part of a gradient: the sum over r, i of values[r, i] rows[r] in row indices[r, i].

    Attributes
    ----------
    values, indices : Tensor [rows, k]
        Weights and latents.
    rows : Tensor [rows, width]
        What is summed.
    """

    values: Tensor
    indices: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Moments:
    """Running means of a matrix's gradient and of its square, and of its bias's."""

    first: Tensor
    second: Tensor
    bias_first: Tensor | None
    bias_second: Tensor | None

    @classmethod
    def of(cls, rows: Tensor, bias: Tensor | None) -> Moments:
        """Return zeros."""
        beside = (None, None) if bias is None else (torch.zeros_like(bias), torch.zeros_like(bias))
        return cls(torch.zeros_like(rows), torch.zeros_like(rows), *beside)

    def named(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        names = ("first", "second", "bias_first", "bias_second")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}


@dataclass(frozen=True)
class Settings:
    """Of one step; `step` counts from 1."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    step: int

    @property
    def step_size(self) -> float:
        """Learning rate over what the first moment lacks."""
        return self.lr / (1 - self.beta1**self.step)

    @property
    def root(self) -> float:
        """Root of what the second moment lacks."""
        return math.sqrt(1 - self.beta2**self.step)


def move(
    rows: Tensor, bias: Tensor | None, moments: Moments, factors: list[Factor], settings: Settings, *, unit_rows: bool
) -> None:
    """Take one step in place; see `workbench.kernels.training.FactoredAdam`."""
    library = chosen().library if rows.device.type == "cpu" else None
    if library is None:
        _move_dense(rows, bias, moments, factors, settings, unit_rows)
    else:
        _move_compiled(library, rows, bias, moments, factors, settings, unit_rows)
    for tensor in (rows, bias):
        if tensor is not None:
            torch.autograd.graph.increment_version(tensor)  # whoever saved it for a backward pass will be told


def _move_compiled(
    library: Library, rows: Tensor, bias: Tensor | None, moments: Moments, factors: list[Factor], settings: Settings,
    unit_rows: bool,
) -> None:  # fmt: skip
    held = [Factor(f.values.contiguous(), f.indices.contiguous(), f.rows.contiguous()) for f in factors]
    parts = (interface.Factor * len(held))(
        *(
            interface.Factor(f.values.data_ptr(), f.indices.data_ptr(), f.rows.data_ptr(), *f.indices.shape)
            for f in held
        )
    )
    beside = (bias, moments.bias_first, moments.bias_second)
    call = interface.Update(
        rows.data_ptr(), moments.first.data_ptr(), moments.second.data_ptr(),
        *(None if tensor is None else tensor.data_ptr() for tensor in beside),
        ctypes.cast(parts, interface.POINTER), len(held), *rows.shape,
        settings.step_size, settings.beta1, settings.beta2, settings.eps, settings.root, unit_rows, unit_rows,
    )  # fmt: skip
    library.run("update", call)


def _move_dense(
    rows: Tensor, bias: Tensor | None, moments: Moments, factors: list[Factor], settings: Settings, unit_rows: bool
) -> None:
    gradient = torch.zeros_like(rows)
    for factor in factors:
        gradient += topk.scatter_outer(factor.values, factor.indices, factor.rows, len(rows))
    if unit_rows:
        gradient -= (gradient * rows).sum(1, keepdim=True) * rows
    adam(rows, gradient, moments.first, moments.second, settings)
    if unit_rows:
        rows /= rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    if bias is not None and moments.bias_first is not None and moments.bias_second is not None:
        sums = torch.zeros_like(bias)
        for factor in factors:
            ones = factor.values.new_ones(len(factor.values), 1)
            sums += topk.scatter_outer(factor.values, factor.indices, ones, len(bias)).squeeze(1)
        adam(bias, sums, moments.bias_first, moments.bias_second, settings)


def adam(weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, settings: Settings) -> None:
    """Take one step in place, with a dense gradient."""
    first.lerp_(gradient, 1 - settings.beta1)
    second.mul_(settings.beta2).addcmul_(gradient, gradient, value=1 - settings.beta2)
    weight.addcdiv_(first, (second.sqrt() / settings.root).add_(settings.eps), value=-settings.step_size)
