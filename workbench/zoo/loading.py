"""Loading a subject of the zoo by its name."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from workbench.errors import UserError
from workbench.subjects.decoder import Decoder
from workbench.subjects.sources import resolve_device
from workbench.subjects.stacked import StackedSubject
from workbench.zoo.planted import is_planted
from workbench.zoo.planted_weights import load_planted
from workbench.zoo.shelf import zoo_folder
from workbench.zoo.subject import ZooSubject, read_architecture
from workbench.zoo.text import ZooText
from workbench.zoo.towers import load_tower


def load_zoo(name: str, device: str = "auto", dtype: str | None = None) -> StackedSubject:
    """Load a subject of the zoo; needs neither a network nor transformers.

    Parameters
    ----------
    name : str
        A shipped one (``pycode``), a folder that `workbench zoo train` wrote, or a planted one (``planted-ioi-3``);
        with a tower where it has two (``shapes-clip#vision``).
    device : str
        ``auto``, ``cpu`` or ``cuda:N``.
    dtype : str, optional
        ``float32`` (what it was trained in, and the default), ``float64``, ``float16`` or ``bfloat16``.

    Raises
    ------
    UserError
        For an unknown name, a missing or needless tower, or an absent device.
    """
    if is_planted(name):
        return load_planted(name, device, dtype)
    name, _, tower = name.partition("#")
    folder = zoo_folder(name)
    if kind_of(folder) == "towers":
        return load_tower(folder, name, tower, device, dtype)
    if tower:
        raise UserError(f"zoo:{name} is a decoder without a {tower} tower: write zoo:{name}")
    network = Decoder(read_architecture(folder / "architecture.json"))
    network.load_state_dict({key: value.float() for key, value in load_file(folder / "model.safetensors").items()})
    network.to(resolve_device(device), getattr(torch, dtype or "float32"))
    text = ZooText.load(folder / "tokenizer.json", network.arch.n_context)
    return ZooSubject(f"zoo:{name}", network, text)


def kind_of(folder: Path) -> str:
    """Return what kind of subject a folder of the zoo holds, as its ``architecture.json`` says."""
    values = json.loads((folder / "architecture.json").read_text(encoding="utf-8"))
    return str(values.get("kind", "decoder"))
