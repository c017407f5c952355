"""Where dictionaries come from: run folders, folders of our own, SAELens's layout and releases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from workbench.dictionary import Dictionary
from workbench.dictionary_saelens import from_release, from_saelens
from workbench.errors import UserError, nearest


def read_dictionary(address: str) -> Dictionary:
    """Load a dictionary from any address (see `workbench.dictionary.load_dictionary`)."""
    if address.startswith("saelens:"):
        return from_release(address)
    folder = Path(address)
    if not folder.exists() and "#" in address:
        run, _, name = address.rpartition("#")
        return from_run(Path(run), name)
    if (folder / "dictionary.json").is_file():
        return Dictionary.from_parts(
            _tensors(folder / "dictionary.safetensors"), _json(folder / "dictionary.json"), address
        )
    if (folder / "result.json").is_file():
        return from_run(folder)
    if (folder / "cfg.json").is_file():
        return from_saelens(_json(folder / "cfg.json"), _tensors(folder / "sae_weights.safetensors"), address)
    what = "has no dictionary in it" if folder.is_dir() else "does not exist"
    raise UserError(
        f"dictionary {address!r}: the folder {what}; give a run folder of 'sae', a folder in SAELens's layout "
        "(cfg.json and sae_weights.safetensors), or saelens:RELEASE/ID"
    )


def from_run(folder: Path, name: str = "dictionary") -> Dictionary:
    """Load a dictionary that a run made; its settings are in ``result.json``, its weights among the run's."""
    path = folder / "result.json"
    if not path.is_file():
        raise UserError(f"dictionary '{folder}#{name}': {folder} is no run folder")
    weights = _json(path).get("weights", {})
    if name not in weights:
        raise UserError(f"dictionary '{folder}': {_why_none(folder, name, list(weights))}")
    address = str(folder) if name == "dictionary" else f"{folder}#{name}"
    return Dictionary.from_parts(_tensors(folder / "weights" / f"{name}.safetensors"), weights[name]["config"], address)


def _why_none(folder: Path, name: str, names: list[str]) -> str:
    """Say why a run has no dictionary of a name."""
    if not names:
        return "this run made no dictionary; give a run of 'sae'"
    if names == ["dictionary"]:
        return f"this run made one dictionary; leave #{name} out"
    if name == "dictionary":
        return f"this run made several dictionaries: name one, such as {folder}#{names[0]}, of {', '.join(names)}"
    return f"this run made no dictionary {name!r}; nearest: {nearest(name, names)}"


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the dictionary beside it is incomplete") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return found
