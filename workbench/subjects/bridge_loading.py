"""Load causal language models of Hugging Face, by name or from a local folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from workbench.errors import UserError
from workbench.plugin import LoadOptions
from workbench.subjects.bridge import BridgeSubject
from workbench.subjects.sources import resolve_device
from workbench.subjects.towers import explained, quiet

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def read_config(name: str) -> Any:
    """Return the configuration of a checkpoint (a `transformers.PretrainedConfig`); its code is never run.

    Raises
    ------
    UserError
        If there is no such folder or name, or its model needs code of its own.
    """
    here = Path(name).is_dir()
    if not here and (name.startswith((".", "/", "~")) or name.count("/") > 1):  # no name on the hub looks like that
        raise UserError(f"model {name!r}: there is no such folder")
    try:
        with explained(name):
            return AutoConfig.from_pretrained(name, trust_remote_code=False)
    except UserError as error:
        raise UserError(str(error) if here else f"{error} (and there is no folder of that name)") from error


def load_language_model(name: str, options: LoadOptions, address: str) -> BridgeSubject:
    """Load a causal language model with the checkpoint's own weights.

    Parameters
    ----------
    name : str
        A local folder, or a name on the hub.
    options : LoadOptions
        The checkpoint's dtype unless another is given; a device map spreads the model and leaves no choice of device.
    address : str
        Recorded in stores and runs.

    Raises
    ------
    UserError
        If the checkpoint cannot be read, lacks weights, or its architecture is not supported.
    """
    placement: dict[str, Any] = {}
    if options.device_map is not None:
        if options.device != "auto":
            raise UserError(f"device {options.device!r} and device map {options.device_map!r}: give one of them")
        placement["device_map"] = options.device_map
    dtype = "auto" if options.dtype is None else getattr(torch, options.dtype)
    with quiet(transformers), explained(name):
        model, report = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, trust_remote_code=False, output_loading_info=True, **placement
        )
    if report["missing_keys"]:
        lacking = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"model {name!r} lacks weights of a {type(model).__name__}: {lacking}")
    if options.device_map is None:
        model = model.to(resolve_device(options.device))
    return BridgeSubject(address, model, _tokenizer(name))


def _tokenizer(name: str) -> Any | None:
    """Return the checkpoint's tokenizer; None for a local folder without one."""
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).exists() for file in TOKENIZER_FILES):
        return None
    with quiet(transformers), explained(name):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
