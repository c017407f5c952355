"""Subjects whose network is a module of ours: a front (embedding), a `Stack` of blocks, a back (unembedding, head)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from workbench.subjects.protocol import Batch, HookPoint
from workbench.subjects.tape import Tape
from workbench.subjects.taped import TapedSubject, hash_of_tensors
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


class StackedSubject(TapedSubject):
    """A subject around a `HookedNetwork`.

    Parameters
    ----------
    address : str
        Recorded in stores and runs.
    network : HookedNetwork
        In evaluation mode, on its device, in its dtype.
    """

    layer_roles = BLOCK_ROLES

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
        return hash_of_tensors(repr(self.network.arch), self.network.state_dict().items())

    def forward(self, batch: Batch, tape: Tape) -> Tensor:
        """See `TapedSubject`."""
        value: Tensor = self.network(batch, tape)
        return value

    def outer_weights(self) -> Mapping[str, Tensor | None]:
        """See `TapedSubject`."""
        return self.network.outer_weights()

    def layer_weight(self, role: str, layer: int) -> Tensor | None:
        """See `TapedSubject`."""
        block = self.network.stack.blocks[layer]
        assert isinstance(block, Block)
        return block.weight(role)
