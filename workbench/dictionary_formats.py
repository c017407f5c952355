"""Where dictionaries come from: run folders, folders of our own, SAELens's layout and releases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from workbench.dictionary import Dictionary
from workbench.errors import UserError

ACTIVATIONS = {"topk": "topk", "standard": "relu", "jumprelu": "jumprelu"}  # SAELens's architectures, and our names
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float16, torch.bfloat16, torch.float64)}
OLD_NAMES = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}  # before SAELens 6


def read_dictionary(address: str) -> Dictionary:
    """Load a dictionary from any address (see `workbench.dictionary.load_dictionary`)."""
    if address.startswith("saelens:"):
        return from_release(address)
    folder = Path(address)
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


def from_run(folder: Path) -> Dictionary:
    """Load the dictionary that a run made; its settings are in ``result.json``, its weights among the run's."""
    weights = _json(folder / "result.json").get("weights", {})
    if "dictionary" not in weights:
        raise UserError(f"dictionary {str(folder)!r}: this run made no dictionary; give a run of 'sae'")
    return Dictionary.from_parts(
        _tensors(folder / "weights" / "dictionary.safetensors"), weights["dictionary"]["config"], str(folder)
    )


def from_release(address: str) -> Dictionary:
    """Download ``saelens:RELEASE/ID`` with sae_lens."""
    release, slash, name = address.removeprefix("saelens:").partition("/")
    if not slash or not name:
        raise UserError(
            f"dictionary {address!r}: write saelens:RELEASE/ID, such as saelens:gpt2-small-res-jb/blocks.8.…"
        )
    from sae_lens import SAE

    try:
        sae = SAE.from_pretrained(release, name)
    except (ValueError, OSError) as error:
        raise UserError(f"dictionary {address!r}: sae_lens could not load it: {error}") from error
    return from_saelens(sae.cfg.to_dict(), dict(sae.state_dict()), address)


def from_saelens(config: Mapping[str, Any], tensors: Mapping[str, Tensor], address: str) -> Dictionary:
    """Turn SAELens's configuration and weights into a dictionary with the same activations.

    Parameters
    ----------
    config : mapping
        Of ``cfg.json``, from SAELens 3 to 6.
    tensors : mapping of str to Tensor
        Of ``sae_weights.safetensors``: W_enc [width, latents], W_dec [latents, width], b_enc, b_dec, threshold.
    address : str
        For messages.

    Raises
    ------
    UserError
        For architectures other than TopK, Standard and JumpReLU, and inputs normalised row by row.

    Notes
    -----
    ``normalize_activations="expected_average_only_in"`` counts as none, as it does in SAELens: it is folded into the
    weights when they are saved. Weights come in the configuration's dtype.
    """
    config = {OLD_NAMES.get(key, key): value for key, value in config.items()}
    meta = config.get("metadata") or {}
    architecture = config.get("architecture", "standard")
    k = config.get("k")
    if config.get("activation_fn") == "topk":  # before SAELens 6 a TopK autoencoder was a standard one
        architecture, k = "topk", (config.get("activation_fn_kwargs") or {}).get("k")
    if architecture not in ACTIVATIONS:
        raise UserError(f"dictionary {address}: architecture {architecture!r}; supported: {', '.join(ACTIVATIONS)}")
    if (normalised := config.get("normalize_activations")) not in (
        None,
        False,
        True,
        "none",
        "expected_average_only_in",
    ):
        raise UserError(f"dictionary {address}: inputs normalised by {normalised!r} are not supported")
    hook = meta.get("hook_name") or config.get("hook_name")
    if not hook:
        raise UserError(f"dictionary {address}: its configuration names no hook point (hook_name)")
    dtype = DTYPES.get(str(config.get("dtype", "float32")).removeprefix("torch."), torch.float32)
    try:
        weights = {name: tensors[name].to(dtype) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    except KeyError as missing:
        raise UserError(f"dictionary {address} is incomplete: {missing.args[0]} is missing") from None
    W_enc, W_dec, b_enc = weights["W_enc"].T.contiguous(), weights["W_dec"], weights["b_enc"]
    if config.get("rescale_acts_by_decoder_norm"):  # selection by score times decoder norm, decoding with unit rows
        norms = W_dec.norm(dim=1)
        W_enc, b_enc, W_dec = W_enc * norms[:, None], b_enc * norms, W_dec / norms[:, None]
    centred = config.get("apply_b_dec_to_input", True)
    threshold = tensors.get("threshold") if architecture == "jumprelu" else None
    return Dictionary(
        W_enc=W_enc,
        b_enc=b_enc,
        W_dec=W_dec.contiguous(),
        b_dec=weights["b_dec"],
        b_pre=weights["b_dec"] if centred else torch.zeros_like(weights["b_dec"]),
        activation=ACTIVATIONS[architecture],  # type: ignore[arg-type]  # the mapping's values are the literal's
        hook_in=hook,
        hook_out=hook,
        k=k if architecture == "topk" else None,
        threshold=None if threshold is None else threshold.to(dtype),
        subject_address=meta.get("model_name") or config.get("model_name") or "",
        address=address,
    )


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
