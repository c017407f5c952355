"""``tl:NAME``: the models that TransformerLens knows by name, its old short names included."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import UserError, nearest
from workbench.subjects import hf_source
from workbench.subjects.protocol import Subject


def load(name: str, *, device: str = "auto", dtype: str | None = None, device_map: str | None = None) -> Subject:
    """Load a model by TransformerLens's name for it.

    Parameters
    ----------
    name : str
        ``gpt2``, ``pythia-70m``, an official name such as ``EleutherAI/pythia-70m``, or a local folder.
    device, dtype, device_map : str
        See `workbench.plugin.LoadOptions`.

    Raises
    ------
    UserError
        If TransformerLens knows no such name, or the model cannot be loaded.
    """
    official = official_name(name)
    return hf_source.load(official, device=device, dtype=dtype, device_map=device_map, address=f"tl:{name}")


def official_name(name: str) -> str:
    """Return the hub's name of a model, or the folder given.

    Raises
    ------
    UserError
        For a short name that TransformerLens does not know; the message gives the nearest three.
    """
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    if Path(name).is_dir():
        return name
    official: dict[str, str] = {alias: full for full, aliases in MODEL_ALIASES.items() for alias in aliases}
    known = {*OFFICIAL_MODEL_NAMES, *official}
    if name not in known and "/" not in name:
        raise UserError(f"TransformerLens knows no model {name!r}; nearest: {nearest(name, sorted(known))}")
    return official.get(name, name)
