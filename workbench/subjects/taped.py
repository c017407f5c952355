"""Subjects whose forward pass goes past a `Tape`: the one pass behind `run`, weights by role, a hash of parameters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
import xxhash
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.protocol import Batch, Edit, Edits, Output, Subject
from workbench.subjects.tape import Stopped, Tape


class TapedSubject(Subject):
    """A subject that says how it runs past a tape and where its weights are.

    Attributes
    ----------
    layer_roles : tuple of str
        Roles of weights that a layer may have.
    """

    layer_roles: ClassVar[tuple[str, ...]]

    @abstractmethod
    def forward(self, batch: Batch, tape: Tape) -> Tensor:
        """Run the model past a tape; what is returned becomes `Output.value`."""

    @abstractmethod
    def outer_weights(self) -> Mapping[str, Tensor | None]:
        """Return the weights of the whole model by role; None where absent."""

    @abstractmethod
    def layer_weight(self, role: str, layer: int) -> Tensor | None:
        """Return one weight of a layer by role, a view where possible; None where absent."""

    def run(
        self,
        batch: Batch,
        capture: Sequence[str] = (),
        edits: Edits | None = None,
        grad: bool = False,
        stop_after: str | None = None,
    ) -> Output:
        """See `Subject.run`."""
        names = self.expand(capture) if capture else []
        if stop_after is not None:
            self.expand([stop_after])
        tape = Tape(self.hook_points, batch, names, self.edits_by_name(edits or {}), grad, stop_after)
        with torch.set_grad_enabled(grad):
            try:
                value = self.forward(batch, tape)
            except Stopped:
                return Output(None, tape.captured)
        return Output(value if grad else value.detach(), tape.captured)

    def edits_by_name(self, edits: Edits) -> dict[str, list[Edit]]:
        """List the edits of each hook point in the order given; a pattern stands for every hook point it matches."""
        by_name: dict[str, list[Edit]] = {}
        for pattern, functions in edits.items():
            for name in self.expand([pattern]):
                by_name.setdefault(name, []).extend([functions] if callable(functions) else functions)
        return by_name

    def weights(self, role: str, layer: int | None = None, expand: bool = False) -> Tensor:
        """See `Subject.weights`; with `expand`, repeated keys and values are a copy."""
        if layer is None:
            found = self.outer_weights()
        else:
            if not 0 <= layer < self.n_layers:
                raise UserError(f"layer {layer}: {self.address} has layers 0 to {self.n_layers - 1}")
            found = {name: self.layer_weight(name, layer) for name in self.layer_roles}
        value = found.get(role)
        if value is None:
            where = "as a whole" if layer is None else f"in layer {layer}"
            known = ", ".join(name for name, weight in found.items() if weight is not None)
            raise UserError(f"{self.address} has no weight {role!r} {where}; it has {known}")
        if expand and role in {"W_K", "W_V", "b_K", "b_V"}:
            return value.repeat_interleave(self.n_heads // self.n_key_value_heads, dim=0)
        return value


def hash_of_tensors(about: str, named: Iterable[tuple[str, Tensor]]) -> str:
    """Hash a description, and the names, dtypes, shapes and bytes of tensors, on whatever device they are."""
    digest = xxhash.xxh3_128(about.encode())
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
