"""Subjects whose network is a module of ours: a front (embedding), a `Stack` of blocks, a back (unembedding, head)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.subjects.protocol import Batch, Edits, HookPoint, Output, Subject
from workbench.subjects.tape import Stopped, Tape, normalise_edits
from workbench.subjects.transformer import BLOCK_ROLES, Block, Stack


class HookedNetwork(nn.Module):
    """A network that passes its activations through a tape.

    Subclasses hold `stack` and say what comes before and after it.

    Attributes
    ----------
    arch : dataclass
        All that fixes the computation beside the weights, the stack's architecture included.
    stack : Stack
        The blocks.
    """

    arch: Any
    stack: Stack

    @abstractmethod
    def front_hook_points(self) -> list[HookPoint]:
        """Hook points before the first block, in forward order."""

    @abstractmethod
    def back_hook_points(self) -> list[HookPoint]:
        """Hook points after the last block, in forward order."""

    @abstractmethod
    def forward(self, batch: Batch, tape: Tape) -> Tensor:
        """Run the network; what is returned becomes `Output.value`."""

    @abstractmethod
    def outer_weights(self) -> Mapping[str, Tensor | None]:
        """Weights of the whole model by role (``W_E``, ``W_pos``, ``W_U``, ``ln_final.w``, ...); None where absent."""

    def stream(self, name: str) -> HookPoint:
        """Return a hook point [batch, pos, d_model]."""
        return HookPoint(name, ("batch", "pos", "d_model"), (None, None, self.stack.arch.d_model))

    def scale(self, norm: str) -> HookPoint:
        """Return the hook point [batch, pos, 1] of what a layer norm divides by."""
        return HookPoint(f"{norm}.hook_scale", ("batch", "pos", "scale"), (None, None, 1))

    def hook_points(self) -> dict[str, HookPoint]:
        """All hook points in forward order."""
        arch = self.stack.arch
        blocks = [point for layer in range(arch.n_layers) for point in arch.block_hook_points(layer)]
        return {point.name: point for point in (*self.front_hook_points(), *blocks, *self.back_hook_points())}


class StackedSubject(Subject):
    """A subject around a `HookedNetwork`.

    Parameters
    ----------
    address : str
        Recorded in stores and runs.
    network : HookedNetwork
        In evaluation mode, on its device, in its dtype.
    """

    def __init__(self, address: str, network: HookedNetwork) -> None:
        self.address = address
        self.network = network.eval().requires_grad_(False)
        arch = network.stack.arch
        self.causal = arch.causal
        self.n_layers, self.d_model, self.n_heads = arch.n_layers, arch.d_model, arch.n_heads
        self.n_key_value_heads, self.d_head, self.d_mlp = arch.kv_heads, arch.d_head, arch.d_mlp
        self.hook_points = network.hook_points()
        first = next(network.parameters())
        self.device, self.dtype = first.device, first.dtype

    def fingerprint(self) -> str:
        """See `Subject.fingerprint`: names, dtypes, shapes and bytes of all parameters, and the architecture."""
        digest = xxhash.xxh3_128(repr(self.network.arch).encode())
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

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
        wanted = normalise_edits(edits)
        if wanted:
            self.expand(wanted)
        if stop_after is not None:
            self.expand([stop_after])
        tape = Tape(self.hook_points, batch, names, wanted, grad, stop_after)
        with torch.set_grad_enabled(grad):
            try:
                value = self.network(batch, tape)
            except Stopped:
                return Output(None, tape.captured)
        return Output(value if grad else value.detach(), tape.captured)

    def weights(self, role: str, layer: int | None = None, expand: bool = False) -> Tensor:
        """See `Subject.weights`."""
        if layer is None:
            found = self.network.outer_weights()
            known = [name for name, value in found.items() if value is not None]
            value = found.get(role)
        else:
            if not 0 <= layer < self.n_layers:
                raise UserError(f"layer {layer}: {self.address} has layers 0 to {self.n_layers - 1}")
            block = self.network.stack.blocks[layer]
            assert isinstance(block, Block)
            known = [name for name in BLOCK_ROLES if block.weight(name) is not None]
            value = block.weight(role) if role in known else None
        if value is None:
            where = "as a whole" if layer is None else f"in layer {layer}"
            raise UserError(f"{self.address} has no weight {role!r} {where}; it has {', '.join(known)}")
        if expand and role in {"W_K", "W_V", "b_K", "b_V"}:
            return value.repeat_interleave(self.n_heads // self.n_key_value_heads, dim=0)
        return value
