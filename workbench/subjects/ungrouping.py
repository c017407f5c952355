"""Grouped-query attention taken apart: the same network, in which every head has keys and values of its own."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.protocol import Subject

PROBE = (0, 1, 2, 1)  # tokens on which the two must agree


def ungrouped(subject: Subject) -> Subject:
    """Return a subject that computes the same, whose shared keys and values are repeated for each head.

    Its hook points for keys and values have as many heads as those for queries, so that what one head reads can be
    edited without the others of its group. Weights that are not repeated are shared with the subject given.

    Parameters
    ----------
    subject : Subject
        A language model. One whose heads share nothing is returned as it is.

    Raises
    ------
    UserError
        If the subject's keys and values cannot be told apart from the outside: its projections are fused, it is spread
        over devices, it is no decoder of the zoo or language model of Hugging Face, or the two would not agree.
    """
    if subject.n_key_value_heads == subject.n_heads:
        return subject
    from workbench.subjects.stacked import StackedSubject

    if isinstance(subject, StackedSubject):
        other = _of_stack(subject)
    elif hasattr(subject, "rebuilt"):
        other = _of_bridge(subject)
    else:
        raise UserError(f"{subject.address}: {type(subject).__name__} cannot be ungrouped")
    batch = subject.batch([list(PROBE)])
    want, got = subject.run(batch).value, other.run(batch).value
    assert want is not None
    assert got is not None
    slack = 1e-3 if subject.dtype in (torch.float32, torch.float64) else 0.1
    if not bool((want - got).abs().max() <= slack * want.abs().max()):
        raise UserError(f"{subject.address} does not compute the same once each head has its own keys and values")
    return other


def repeated(parameter: Tensor, shape: torch.Size, subject: Subject) -> Tensor:
    """Repeat the heads along a parameter's first axis until it has a shape.

    Raises
    ------
    UserError
        If that is not what tells the shapes apart.
    """
    if parameter.shape == shape:
        return parameter
    n_shared, groups = subject.n_key_value_heads, subject.n_heads // subject.n_key_value_heads
    if len(parameter) % n_shared or (len(parameter) * groups, *parameter.shape[1:]) != tuple(shape):
        raise UserError(
            f"{subject.address} cannot be ungrouped: a weight of {tuple(parameter.shape)} would become {tuple(shape)}, "
            "which is not one head after another"
        )
    heads = parameter.reshape(n_shared, -1, *parameter.shape[1:])
    return heads.repeat_interleave(groups, dim=0).reshape(shape)


def _of_stack(subject: Any) -> Subject:
    """A network of our own: the same class, with one key and value head for each query head."""
    arch = subject.network.arch
    stack = replace(arch.stack, n_key_value_heads=arch.stack.n_heads)
    network = type(subject.network)(replace(arch, stack=stack)).to(subject.device, subject.dtype)
    held = subject.network.state_dict()
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    network.load_state_dict({name: repeated(held[name], shape, subject) for name, shape in wanted.items()}, assign=True)
    other = copy.copy(subject)
    other.network = network.eval().requires_grad_(False)
    other.n_key_value_heads, other.hook_points = subject.n_heads, network.hook_points()
    return other  # type: ignore[no-any-return]


def _of_bridge(subject: Any) -> Subject:
    """A model of Hugging Face: the same class, from a configuration in which no head shares."""
    config = copy.deepcopy(subject.model.config)
    if getattr(config, "num_key_value_heads", None) != subject.n_key_value_heads:
        raise UserError(f"{subject.address}: a {type(subject.model).__name__} cannot be ungrouped")
    config.num_key_value_heads = subject.n_heads
    return subject.rebuilt(config, lambda weight, shape: repeated(weight, shape, subject))  # type: ignore[no-any-return]
