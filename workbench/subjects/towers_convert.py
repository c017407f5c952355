"""From a Hugging Face checkpoint to a network of ours: the same tensors under other names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from workbench.errors import UserError
from workbench.subjects.stacked import HookedNetwork

Names = Mapping[str, str | tuple[str, str]]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    Attributes
    ----------
    modality : "text" or "vision"
        What the tower reads.
    base : str
        The library's class for a checkpoint without a head that we know.
    heads : tuple of str
        The library's classes whose heads we know; taken when the configuration's ``architectures`` names one.
    names : mapping of str to str
        The library's modules and bare parameters, ``#`` for the number of a layer, to ours; "" for what the forward
        pass does not use. A pair of ours takes the two halves of a fused map. Older spellings stand beside newer ones.
    build : function of configuration, tensors and name of the model
        Makes the network, without weights; the tensors (ours by name) tell which optional parts there are.
    prefixes : tuple of str
        Dropped from the front of the library's names.
    others : tuple of str
        What starts with one of these belongs to another tower.
    """

    modality: Literal["text", "vision"]
    base: str
    names: Names
    build: Callable[[Any, State, str], HookedNetwork]
    heads: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def library_class(self, architectures: list[str] | None) -> str:
        """Return the library's class to load a checkpoint with."""
        return next((name for name in architectures or () if name in self.heads), self.base)


def block_names(library: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Spell out a family's names within a block.

    Parameters
    ----------
    library : str
        Where the library keeps a layer, such as ``encoder.layer.#``.
    parts : mapping of str to str
        Within a layer: the library's name to ours.
    """
    return {f"{library}.{theirs}": f"stack.blocks.#.{ours}" for theirs, ours in parts.items()}


def translate(state: State, family: Family, model: str) -> dict[str, Tensor]:
    """Return a library's state dict under our names; fused maps are split into views.

    Raises
    ------
    UserError
        For a tensor that the family does not know: leaving it out could change what is computed.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.startswith(family.others) or not tensor.numel():
            continue
        ours = our_names(key, family)
        if ours is None:
            raise UserError(f"{model} has the weight {key!r}, which its family ({family.base}) does not have here")
        parts = tensor.chunk(len(ours)) if len(ours) > 1 else [tensor] * len(ours)
        found.update(zip(ours, parts, strict=True))
    return found


def our_names(key: str, family: Family) -> tuple[str, ...] | None:
    """Return what we call a tensor of the library: nothing if unused, two names if fused; None if unknown."""
    for prefix in family.prefixes:
        key = key.removeprefix(prefix)
    layer = re.search(r"\.(\d+)\.", f".{key}")
    generic = re.sub(r"(^|\.)\d+\.", r"\1#.", key, count=1)
    module, _, leaf = generic.rpartition(".")
    name, end = (generic, "") if generic in family.names else (module, f".{leaf}")
    if name not in family.names:
        return None
    target = family.names[name]
    targets = target if isinstance(target, tuple) else (target,)
    number = layer[1] if layer else ""
    return tuple(one.replace("#", number) + end for one in targets if one)


def fill(network: HookedNetwork, state: State, model: str) -> None:
    """Give a network without weights the checkpoint's own tensors, uncopied.

    Raises
    ------
    UserError
        If the checkpoint lacks a weight, or one has another shape.
    """
    wanted = network.state_dict()
    missing = sorted(set(wanted) - set(state))
    if missing:
        raise UserError(f"the checkpoint of {model} lacks weights: {', '.join(missing[:5])} ({len(missing)} in all)")
    fitted = {}
    for name, place in wanted.items():
        tensor = state[name]
        if [n for n in tensor.shape if n > 1] != [n for n in place.shape if n > 1]:
            raise UserError(f"{model}: weight {name} is {tuple(tensor.shape)}, expected {tuple(place.shape)}")
        fitted[name] = tensor.detach().reshape(place.shape)
    network.load_state_dict(fitted, assign=True)


def build_empty(make: Callable[[], HookedNetwork]) -> HookedNetwork:
    """Make a network on the meta device: shapes without memory."""
    with torch.device("meta"):
        return make()
