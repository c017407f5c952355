"""The record of one forward pass: every hook point goes through `Tape`, which captures, edits and stops."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.protocol import At, Batch, Edit, HookPoint


class Stopped(Exception):
    """Raised inside a forward pass once the last hook point of interest has been reached."""


class Tape:
    """What one forward pass is to capture and edit.

    Parameters
    ----------
    hook_points : mapping of str to HookPoint
        Those of the subject.
    batch : Batch
        Handed to edits.
    capture : collection of str
        Names to record.
    edits : mapping of str to functions
        See `Subject.run`.
    grad : bool
        Keep captured values in the graph.
    stop_after : str, optional
        Raise `Stopped` after this hook point.
    """

    def __init__(
        self,
        hook_points: Mapping[str, HookPoint],
        batch: Batch,
        capture: Collection[str] = (),
        edits: Mapping[str, Sequence[Edit]] | None = None,
        grad: bool = False,
        stop_after: str | None = None,
    ) -> None:
        self.hook_points = hook_points
        self.batch = batch
        self.capture = frozenset(capture)
        self.edits = dict(edits or {})
        self.grad = grad
        self.stop_after = stop_after
        self.captured: dict[str, Tensor] = {}

    def wants(self, *names: str) -> bool:
        """True if any of the names is captured, edited or the place to stop: only then is a costly value computed."""
        return any(name in self.capture or name in self.edits or name == self.stop_after for name in names)

    def __call__(self, name: str, value: Tensor) -> Tensor:
        """Pass a hook point: apply its edits in order, record the result, stop if this was the last one."""
        edits = self.edits.get(name, ())
        if edits:
            value = value.clone()  # an edit may write in place: neither weights nor earlier captures may feel it
        for edit in edits:
            value = edited(edit, value, At(self.hook_points[name], self.batch))
        if self.grad and value.is_floating_point():
            # Parameters are frozen: the graph starts at the first hook point. Each has a node of its own, so that the
            # gradient at hook_mlp_in, the same numbers as hook_resid_mid, is that of the MLP's branch alone.
            value = value.view_as(value) if value.requires_grad else value.detach().requires_grad_()
        if name in self.capture:
            self.captured[name] = value if self.grad else value.detach()
        if name == self.stop_after:
            raise Stopped
        return value

    def rewritten(self, name: str, before: Tensor) -> tuple[Tensor, bool]:
        """Pass a hook point that is computed on the side.

        Call it only for values that the tape `wants`: they are costly. Returns the value and whether the forward pass
        must now be computed from it. Where nothing was changed and nobody differentiates, the fused computation gives
        the answer: an edit that returns its input changes no bit.
        """
        after = self(name, before)
        return after, self.grad or (after is not before and not torch.equal(after, before))


def edited(edit: Edit, value: Tensor, at: At) -> Tensor:
    """Apply one edit, refusing what cannot be a replacement."""
    result = edit(value, at)
    if result is None:
        raise UserError(f"the edit at {at.hook_point.name} returned None: it must return the tensor to go on with")
    if not isinstance(result, Tensor) or result.shape != value.shape:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise UserError(
            f"the edit at {at.hook_point.name} returned {got}, where the activation is {tuple(value.shape)}"
        )
    return result
