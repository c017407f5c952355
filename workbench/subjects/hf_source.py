"""``hf:NAME-OR-FOLDER``: Hugging Face models of every supported kind, each sent to the loader of its kind."""

from __future__ import annotations

from typing import Literal, cast

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from workbench.errors import UserError
from workbench.plugin import LoadOptions
from workbench.subjects import towers
from workbench.subjects.bridge_loading import load_language_model, read_config
from workbench.subjects.bridge_map import supported_architectures
from workbench.subjects.protocol import Subject

TOWERS = ("vision", "text")


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str | None = None,
    device_map: str | None = None,
    address: str | None = None,
) -> Subject:
    """Load a causal language model, a BERT-style encoder, or a tower of CLIP, ViT or DINO.

    Parameters
    ----------
    name : str
        A local folder or a name on the hub; ``#vision`` or ``#text`` after it names a tower.
    device, dtype, device_map : str
        See `workbench.plugin.LoadOptions`.
    address : str, optional
        Recorded in stores and runs; by default ``hf:NAME``.

    Raises
    ------
    UserError
        If the model cannot be loaded, or is of a kind that is not supported.
    """
    place, _, tower = name.partition("#")
    address = address or f"hf:{name}"
    if tower and tower not in TOWERS:
        raise UserError(f"{address}: after # comes the name of a tower, {' or '.join(TOWERS)}, not {tower!r}")
    kind = read_config(place).model_type
    if kind in towers.FAMILIES:
        chosen = cast(Literal["vision", "text"] | None, tower or None)
        return towers.load_tower(place, chosen, device=device, dtype=dtype, device_map=device_map, address=address)
    known = supported_architectures()
    if MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind) not in known:
        raise UserError(
            f"{address} is of type {kind!r}, which is not supported; supported are encoders and towers "
            f"({', '.join(sorted(towers.FAMILIES))}) and language models ({', '.join(known)})"
        )
    if tower:
        raise UserError(f"{address}: {kind} is one language model and has no {tower} tower; leave out #{tower}")
    return load_language_model(place, LoadOptions(device, dtype, device_map), address)
